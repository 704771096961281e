"""`tiller report`: a report computed again from the outcomes beside it, and where the two differ."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from server.cli.errors import FAILED, CommandFailed
from server.cli.training.files import REPORT, read_file

if TYPE_CHECKING:
    from vectors.training.recomputed import Difference


def report(arguments: argparse.Namespace) -> int:
    """Show the figures; returns the exit code, which says whether the report has the same. Raises `CommandFailed`."""
    from vectors.errors import VectorsError
    from vectors.training.outcomes import OUTCOMES
    from vectors.training.recomputed import differences, recompute_folder

    folder = Path(arguments.folder).expanduser()
    content, lines = read_file(folder / REPORT), read_file(folder / OUTCOMES)
    try:
        reported = json.loads(content)
    except (ValueError, RecursionError):
        raise CommandFailed(f"{folder / REPORT} is not a report: expected JSON") from None
    try:
        figures = recompute_folder(reported, lines)
    except VectorsError as error:
        raise CommandFailed(f"{folder}: {error}") from None
    differing = list(differences(reported, figures))
    if arguments.json:
        found = [dataclasses.asdict(difference) for difference in differing]
        print(json.dumps({"figures": figures, "differences": found}, indent=1, allow_nan=False))
        return FAILED if differing else 0
    console = Console(highlight=False)
    console.print(_table(_leaves(figures), ("figure", "recomputed")))
    if not differing:
        print("the report has the same figures")
        return 0
    print(f"the report differs in {len(differing)} figures:")
    console.print(_table(_shown(differing), ("figure", "report", "recomputed")))
    return FAILED


def _leaves(figures: Any, path: str = "") -> Iterable[tuple[str, str]]:
    """Every figure with its path; those of the grid are left out, being many."""
    if isinstance(figures, dict):
        for name, value in figures.items():
            if name != "grid":
                yield from _leaves(value, f"{path}.{name}" if path else name)
    elif isinstance(figures, list):
        for number, value in enumerate(figures):
            yield from _leaves(value, f"{path}.{number}")
    else:
        yield path, _value(figures)


def _shown(differing: Iterable[Difference]) -> Iterable[tuple[str, str, str]]:
    return ((one.path, _value(one.reported), _value(one.recomputed)) for one in differing)


def _value(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _table(rows: Iterable[Sequence[str]], headings: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    return table
