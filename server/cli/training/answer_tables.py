"""The report on generated answers as a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

_SHARES = ("refusal", "repetition", "cut")
_TITLES = {"refusal": "refusals", "repetition": "repetition", "cut": "cut answers"}


def show_behaviour(report: Mapping[str, Any], console: Console) -> None:
    """Show what each kind of evidence says, what it costs, and the verdict."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("", "unsteered", "steered", "change"):
        table.add_column(heading, no_wrap=True)
    for evidence in report["evidence"]:
        for criterion, figures in evidence["figures"].items():
            if figures is not None:
                is_share = evidence["kind"] != "judge"
                table.add_row(f"{criterion}, {evidence['kind']}", *_cells(figures, 100.0 if is_share else 1.0))
                for decoding, means in figures["by_decoding"].items():
                    shown = [_number(means[side], 100.0 if is_share else 1.0) for side in ("unsteered", "steered")]
                    table.add_row(f"  {decoding}", *shown)
    costs = report["side_effects"]
    for name in _SHARES:
        table.add_row(_TITLES[name], *_cells(costs[name], 100.0))
    if (kept := costs["perplexity"]) is not None:
        low, high = kept["ci95"]
        change = f"× {kept['ratio']:.3f} ({low:.3f}–{high:.3f})"
        table.add_row("perplexity", f"{kept['unsteered']:.4g}", f"{kept['steered']:.4g}", change)
    table.add_row("tokens", *_cells(costs["length"], 1.0))
    console.print(table)
    console.print()
    facts = Table(box=None, pad_edge=False, show_header=False)
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column(overflow="fold")
    data, answers = report["data"], report["answers"]
    steering = ", ".join(f"{entry['vector']} × {entry['scale']:g}" for entry in report["steering"])
    facts.add_row("steering", Text(steering))
    counts = f"{data['prompts']} prompts, each answered once greedily and {answers['sampled']} times sampled"
    facts.add_row("data", Text(f"{data['name']}, {counts}"))
    for note in report["notes"]:
        facts.add_row("note", Text(note))
    helps = "it changes what is written" if report["recommended"] else "not shown"
    facts.add_row("verdict", Text(f"{helps}, {report['reason']}"))
    console.print(facts)


def _cells(change: Mapping[str, Any], factor: float) -> tuple[str, str, str]:
    low, high = change["ci95"]
    interval = f"({factor * low:+.{_places(factor)}f}, {factor * high:+.{_places(factor)}f})"
    places = _places(factor)
    moved = f"{round(factor * change['difference'], places) + 0.0:+.{places}f} {interval}"  # no -0.0
    return _number(change["unsteered"], factor), _number(change["steered"], factor), moved


def _number(value: float, factor: float) -> str:
    return f"{factor * value:.{_places(factor)}f}{' %' if factor == 100.0 else ''}"


def _places(factor: float) -> int:
    return 1 if factor == 100.0 else 2
