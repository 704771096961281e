"""The argument parser; its settings come from the table in `server.config`.

It checks only the form of a command line; values of settings are checked together with the environment's.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from server import __version__
from server.cli.bench.command import add_bench
from server.cli.training.parser import add_report, add_training_commands
from server.cli.training.study import add_study
from server.config import options
from server.keys import CLIENT_VARIABLE, MANAGE_VARIABLE, USE_VARIABLE
from vectors.defaults import DEFAULTS, Default
from vectors.errors import InvalidPositions
from vectors.formats import format_titles
from vectors.positions import parse_positions, positions_json
from vectors.vocabulary import CONVENTIONS, DEFAULT_FILE_FORMAT, FILE_FORMATS, MIN_REVISION_DIGITS

DEFAULT_URL = "http://127.0.0.1:8000"


def _listed(text: str) -> list[str]:
    return text.split(",")


def _positions(text: str) -> Any:
    try:
        return positions_json(parse_positions(text))
    except InvalidPositions as error:
        raise argparse.ArgumentTypeError(str(error)) from None


_TYPES: dict[str, Callable[[str], Any]] = {"number": float, "string": str, "array": _listed, "": _positions}
"""How to read the value of a vector's default, by its JSON type."""


def build_parser() -> argparse.ArgumentParser:
    """The parser of `tiller`; `command` names the command, `action` the action of `vectors`."""
    parser = argparse.ArgumentParser(
        prog="tiller",
        description="An OpenAI-compatible inference server that can steer every request.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"tiller {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_serve(commands)
    _add_chat(commands)
    _add_vectors(commands)
    _add_doctor(commands)
    add_training_commands(commands)
    add_report(commands)
    add_study(commands)
    add_bench(commands)
    return parser


def _add_serve(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    serve = commands.add_parser(
        "serve",
        help="serve a model",
        description="Serve a model, or the embedded demo model if none is named.",
        epilog=f"API keys: {USE_VARIABLE} (use) and {MANAGE_VARIABLE} (use and change the registry), comma-separated.",
        allow_abbrev=False,
    )
    for option in options():
        help_text = f"{option.help} (default: {option.default_text}; {option.variable})".replace("%", "%%")
        if option.is_positional:
            serve.add_argument(option.name, nargs="?", metavar=option.metavar, help=help_text)
        elif option.is_switch:
            serve.add_argument(option.flag, action="store_const", const="true", help=help_text)
        else:
            serve.add_argument(option.flag, metavar=option.metavar, help=help_text)


def _add_chat(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    chat = commands.add_parser(
        "chat",
        help="chat with a running server",
        description="Chat in the terminal with a running server; /help lists the commands.",
        allow_abbrev=False,
    )
    _add_connection(chat)
    chat.add_argument("--model", metavar="ID", help="model to use; may include steering, as in base+honest:1.5")
    chat.add_argument("--system", metavar="TEXT", help="system prompt")
    chat.add_argument(
        "--temperature", type=float, metavar="NUMBER", help="sampling temperature; 0 always takes the most likely token"
    )
    chat.add_argument("--max-tokens", type=int, metavar="COUNT", help="maximum tokens of an answer")
    chat.add_argument("--seed", type=int, metavar="NUMBER", help="seed for repeatable sampling")


def _add_vectors(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    vectors = commands.add_parser(
        "vectors",
        help="list, show, upload, download, roll back and remove steering vectors on a running server",
        description="Manage the steering vectors on a running server.",
        allow_abbrev=False,
    )
    actions = vectors.add_subparsers(dest="action", required=True, metavar="ACTION")

    listing = _add_action(actions, "list", "list the vectors")
    listing.add_argument("--json", action="store_true", help="print one JSON object per line instead of a table")

    show = _add_action(actions, "show", "show a vector and its history", "NAME")
    show.add_argument(
        "--json", action="store_true", help="print one JSON object, with norms, metadata and the training record"
    )

    put = _add_action(actions, "put", "upload a vector, as a new name or as a new revision of one", "NAME")
    put.add_argument(
        "file", metavar="FILE", help=f"a file or a library's folder: {format_titles()}; with --sae, an autoencoder"
    )
    put.add_argument(
        "--sae",
        action="store_true",
        help="FILE is a sparse autoencoder, a folder of SAELens or params.npz of Gemma Scope; one row is read and sent",
    )
    put.add_argument("--feature", type=int, metavar="N", help="which feature of --sae, from 0")
    put.add_argument(
        "--unit-norm",
        action="store_true",
        help="scale the row of --sae to length 1; needed where the autoencoder normalises its activations",
    )
    put.add_argument(
        "--layer",
        type=int,
        metavar="N",
        help="decoder block of a file with one direction or of --sae, or the only one kept",
    )
    put.add_argument("--layers", metavar="LAYERS", help="the layers kept of a file with several, such as 12-16,20")
    put.add_argument("--row", type=int, metavar="N", help="which of several alternatives for --layer, from 0")
    put.add_argument("--convention", choices=CONVENTIONS, help="how the file counts its layers (see the docs)")
    for row in DEFAULTS:
        if row.flag:
            _add_default(put, row)

    get = _add_action(actions, "get", "download a vector", "NAME")
    get.add_argument(
        "-o", "--output", metavar="FILE", help="file to write ('-': standard output; default: NAME.FORMAT)"
    )
    get.add_argument("--format", choices=FILE_FORMATS, default=DEFAULT_FILE_FORMAT)

    rollback = _add_action(actions, "rollback", "point a name back at an earlier revision", "NAME")
    rollback.add_argument(
        "revision",
        metavar="REVISION",
        help=f"at least the first {MIN_REVISION_DIGITS} digits of its hash; 'tiller vectors show NAME' lists them",
    )

    remove = _add_action(actions, "rm", "remove a vector and its history", "NAME")
    for action in (listing, show, put, get, rollback, remove):
        _add_connection(action)


def _add_doctor(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    doctor = commands.add_parser(
        "doctor",
        help="say what is wrong with a data folder, and repair it",
        description="Say what is wrong with the data folder of a server that is stopped. The exit status is 0 for a "
        "whole folder, else 1. Nothing is ever deleted.",
        allow_abbrev=False,
    )
    doctor.add_argument("folder", metavar="DATA_DIR", help="the --data-dir of the server")
    doctor.add_argument(
        "--repair",
        action="store_true",
        help="first move aside what is damaged or belongs to nothing, list files again whose records are lost, and let "
        "names go back to their newest whole revision",
    )


def _add_default(put: argparse.ArgumentParser, row: Default) -> None:
    """Add the flag that sets a default of an uploaded vector."""
    choices = f": {', '.join(row.choices)}" if row.choices and row.metavar else ""
    help_text = f"{row.help}{choices}; requests can override it" if row.in_request else row.help
    if row.choices and not row.metavar:
        put.add_argument(row.flag, dest=row.name, choices=row.choices, help=help_text)
    else:
        put.add_argument(
            row.flag, dest=row.name, type=_TYPES[row.schema.get("type", "")], metavar=row.metavar, help=help_text
        )


def _add_action(
    actions: argparse._SubParsersAction[argparse.ArgumentParser], name: str, summary: str, *positional: str
) -> argparse.ArgumentParser:
    description = f"{summary[0].upper()}{summary[1:]}."
    action = actions.add_parser(name, help=summary, description=description, allow_abbrev=False)
    for metavar in positional:
        action.add_argument(metavar.lower(), metavar=metavar)
    return action


def _add_connection(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--url", default=DEFAULT_URL, metavar="URL", help=f"URL of the server (default: {DEFAULT_URL})")
    parser.epilog = f"{CLIENT_VARIABLE} is the API key, if the server needs one."
