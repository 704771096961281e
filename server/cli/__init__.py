"""The command line: `tiller` serves, chats, keeps vectors, trains and studies. The only reader of argv and environment.

Importing it is cheap: what loads a model is imported by the commands that do. It does not know how a request is
served.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence

from server.cli.errors import CommandFailed
from server.cli.output import discard_output
from server.cli.parser import build_parser
from server.cli.training.parser import COMMANDS

__all__ = ["main"]

_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None, environ: Mapping[str, str] | None = None) -> int:
    """Run one command; returns the exit code."""
    environ = os.environ if environ is None else environ
    arguments = build_parser().parse_args(argv)
    try:
        if arguments.command == "serve":
            from server.cli.serve.command import serve

            return serve(vars(arguments), environ)
        if arguments.command == "chat":
            from server.cli.client.chat import chat

            return chat(arguments, environ)
        if arguments.command in COMMANDS:
            from server.cli.training.command import train

            return train(arguments, environ)
        if arguments.command == "study":
            from server.cli.training.study import study

            return study(arguments, environ)
        from server.cli.client.vectors import vectors

        return vectors(arguments, environ)
    except CommandFailed as error:
        print(f"tiller: {_one_line(str(error))}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("tiller: interrupted", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:
        discard_output()
        return 1


def _one_line(text: str) -> str:
    return " ".join(text.split())
