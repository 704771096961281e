"""`tiller bench`: measures a model's engine, or with `--url` a running server; a table, JSON and a plot."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from server.cli.bench.offline import SETTINGS, measure_offline
from server.cli.bench.online import measure_online
from server.cli.bench.result import DEFAULT_NUMBERS, Result
from server.cli.errors import USAGE, CommandFailed
from server.config import options
from server.keys import CLIENT_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Callable

_OF_AN_ENGINE = ("batch", "vectors", *SETTINGS[1:])
_OF_A_SERVER = ("clients", "rate", "requests", "steer", "body")
_LARGEST = 1 << 20


def add_bench(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser of `tiller`."""
    parser = commands.add_parser(
        "bench",
        help="measure how fast a model or a running server is, unsteered and steered",
        description="Load a model as `tiller serve` does and measure its engine, without HTTP: prefill and decoding by "
        "batch size, unsteered and with different vectors on the requests of a batch, in every block. With --url, "
        "measure a running server instead, of any kind that has OpenAI's API: tokens a second, the time to the first "
        "token and between tokens. Nothing else should run on the machine.",
        epilog=f"The key for --url: {CLIENT_VARIABLE}.",
        allow_abbrev=False,
    )
    by_name = {option.name: option for option in options()}
    parser.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help=f"{by_name['model'].help} (default: the embedded one; with --url: the first that the server lists)",
    )
    for name, number, meaning in (
        ("prompt-tokens", 64, "tokens of a prompt (with --url: words, which are about as many)"),
        ("new-tokens", 64, "tokens of an answer"),
        ("repeats", 5, "measurements of each, after one to warm up"),
    ):
        parser.add_argument(
            f"--{name}", type=_count, default=number, metavar="COUNT", help=f"{meaning} (default: {number})"
        )
    parser.add_argument(
        "--shared-tokens",
        type=int,
        default=0,
        metavar="COUNT",
        help="tokens (with --url: words) at the start of each prompt that all prompts share (default: 0)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="also draw the figures, into this PNG file")
    engine = parser.add_argument_group("an engine")
    for name, meaning in (
        ("batch", "requests at once"),
        ("vectors", "different vectors among the requests of a batch, at most one each"),
    ):
        engine.add_argument(f"--{name}", metavar="NUMBERS", help=f"{meaning} (default: {DEFAULT_NUMBERS})")
    for name in SETTINGS[1:]:
        option = by_name[name]
        meaning = f"{option.help} (default: {option.default_text})".replace("%", "%%")
        engine.add_argument(option.flag, metavar=option.metavar, help=meaning)
    server = parser.add_argument_group("a running server")
    server.add_argument("--url", metavar="URL", help="measure the server at this address")
    server.add_argument(
        "--clients",
        metavar="NUMBERS",
        help=f"clients that each ask one thing after another (default: {DEFAULT_NUMBERS})",
    )
    server.add_argument(
        "--rate", metavar="NUMBERS", help="requests a second that arrive at random moments, instead of --clients"
    )
    server.add_argument(
        "--requests", type=_count, metavar="COUNT", help="of each measurement (default: 2 a client, or 32)"
    )
    server.add_argument(
        "--steer", metavar="NAMES", help="also measure with these vectors, one a request in turn; for tiller"
    )
    server.add_argument("--body", metavar="JSON", help="fields that are added to each request")


def _count(text: str) -> int:
    number = int(text)
    if not 0 < number <= _LARGEST:
        raise ValueError
    return number


_count.__name__ = "whole number above 0"  # as argparse names it in errors


def bench(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Measure and print a table, or JSON; returns the exit code. Raises `CommandFailed`."""
    if not 0 <= arguments.shared_tokens <= arguments.prompt_tokens:
        expected = f"expected 0 to --prompt-tokens ({arguments.prompt_tokens})"
        raise CommandFailed(f"--shared-tokens: {expected}, got {arguments.shared_tokens}", USAGE)
    others = _OF_A_SERVER if arguments.url is None else _OF_AN_ENGINE
    for name in others:
        if getattr(arguments, name) is not None:
            applies = "only with --url" if arguments.url is None else "not with --url, where the server decides"
            raise CommandFailed(f"--{name.replace('_', '-')} applies {applies}", USAGE)
    if arguments.rate is not None and arguments.clients is not None:
        raise CommandFailed("expected --rate or --clients, got both", USAGE)
    measured = measure_offline if arguments.url is None else measure_online
    result = measured(arguments, environ, _progress)
    if arguments.plot is not None:
        _write(arguments.plot, result)
    if arguments.json:
        print(json.dumps(result.json, indent=1))
    else:
        _print_table(result)
    return 0


@contextmanager
def _progress(total: int) -> Iterator[Callable[[], None]]:
    """A bar with an estimate on a terminal; the function that advances it."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("measuring"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("", total=total)
        yield lambda: progress.advance(bar)


def _write(path: Path, result: Result) -> None:
    from vectors.errors import MissingDependency

    try:
        path.write_bytes(result.plot())
    except (OSError, MissingDependency) as error:
        raise CommandFailed(f"--plot {path}: {error}") from None


def _print_table(result: Result) -> None:
    for line in result.head:
        print(line)
    widths = [max(len(row[column]) for row in result.rows) for column in range(len(result.rows[0]))]
    for row in result.rows:
        print(_line(row, widths))
    for line in result.foot:
        print(line)


def _line(row: Sequence[Any], widths: Sequence[int]) -> str:
    return "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
