"""The command line: `tiller` serves, chats, manages vectors, trains and runs studies. Only it reads argv and
environment.

Importing it is cheap: a command imports the heavy parts when it runs.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse

__all__ = ["main"]


def main(argv: Sequence[str] | None = None, environ: Mapping[str, str] | None = None) -> int:
    """Run one command; returns the exit code."""
    from server.cli.signals import ending_at_once  # all imports come later than what a signal does

    with ending_at_once():
        return _main(argv, os.environ if environ is None else environ)


def _main(argv: Sequence[str] | None, environ: Mapping[str, str]) -> int:
    from server.cli.errors import FAILED, CommandFailed
    from server.cli.output import discard_output
    from server.cli.parser import build_parser
    from server.cli.signals import interruptible, status_of

    arguments = build_parser().parse_args(argv)
    try:
        if arguments.command == "serve":
            from server.cli.serve.command import serve

            return serve(vars(arguments), environ)
        with interruptible():
            return _run(arguments, environ)
    except CommandFailed as error:
        print(f"tiller: {_one_line(str(error))}", file=sys.stderr)
        return error.exit_code
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "server", "vectors"):
            raise
        print(f"tiller: {arguments.command} needs {package}, {_how_to_install(arguments)}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("tiller: interrupted", file=sys.stderr)
        return status_of(signal.SIGINT)
    except BrokenPipeError:
        discard_output()
        return 1


def _run(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Run a command other than `serve`."""
    from server.cli.training.parser import COMMANDS, REPORT_COMMAND

    if arguments.command == "chat":
        from server.cli.client.chat import chat

        return chat(arguments, environ)
    if arguments.command in COMMANDS:
        from server.cli.training.command import train

        return train(arguments, environ)
    if arguments.command == REPORT_COMMAND:
        from server.cli.training.report import report

        return report(arguments)
    if arguments.command == "doctor":
        from server.cli.doctor import doctor

        return doctor(arguments)
    if arguments.command == "bench":
        from server.cli.bench.command import bench

        return bench(arguments, environ)
    if arguments.command == "study":
        from server.cli.training.study import study

        return study(arguments, environ)
    from server.cli.client.vectors import vectors

    return vectors(arguments, environ)


def _how_to_install(arguments: argparse.Namespace) -> str:
    """How to install a missing package, by the extra that brings it."""
    if arguments.command in ("chat", "vectors") or getattr(arguments, "url", None) is not None:
        extra = "client"
    else:
        extra = "server" if arguments.command == "serve" else "server,train"
    return f"which is not installed: pip install 'tiller[{extra}]'"


def _one_line(text: str) -> str:
    return " ".join(text.split())
