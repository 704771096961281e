"""What a soak leaves: a report in Markdown, a plot, the readings as CSV, and what the servers said."""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
from pathlib import Path

from tests.soak.readings import MEASURES, Reading
from tests.soak.run import Soak
from vectors.training.canvas import NOTE_SIZE, Canvas

_COLOUR, _KILL = "#2166ac", "#b2182b"


def write_report(soak: Soak, folder: Path) -> None:
    """Write `report.md`, `soak.png`, `readings.csv` and `server.log` to `folder`."""
    (folder / "report.md").write_text(markdown(soak), encoding="utf-8")
    (folder / "server.log").write_text(soak.output, encoding="utf-8")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([column.name for column in dataclasses.fields(Reading)])
    writer.writerows(dataclasses.astuple(reading) for reading in soak.readings)
    (folder / "readings.csv").write_text(text.getvalue(), encoding="utf-8")
    if soak.readings:
        (folder / "soak.png").write_bytes(plot(soak.readings))


def markdown(soak: Soak) -> str:
    """The report."""
    plan, ledger = soak.plan, soak.ledger
    verdict = ["Nothing failed."] if not soak.failures else ["Failed:", "", *_quoted(soak.failures)]
    statuses = {status or "raw": count for status, count in sorted(soak.tally.statuses.items())}
    rows = [
        ("seconds served", f"{plan.seconds:.0f}"),
        ("lives", f"{len(soak.starts)}, each but the last ended by kill -9"),
        ("seconds to be ready", ", ".join(f"{seconds:.0f}" for seconds in soak.starts)),
        ("answers by status", ", ".join(f"{status}: {count}" for status, count in statuses.items())),
        *sorted((name, str(count)) for name, count in soak.tally.done.items()),
        ("changes acknowledged", str(ledger.num_acknowledged)),
        ("changes cut short by a kill", str(ledger.num_unsure)),
    ]
    lines = ["# Soak", "", *verdict, "", "| what | how much |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in rows]
    lines += ["", "Medians of the first and the last third of what was read each second, once a life was warm:", ""]
    lines += ["| measure | where | first third | last third | allowed growth | flat |", "|---|---|---|---|---|---|"]
    for one in soak.judgements:
        unit = f" {one.measure.unit}".rstrip()
        cells = [one.measure.name, one.where, f"{one.first:.0f}{unit}", f"{one.last:.0f}{unit}"]
        cells += [f"{one.measure.bound:g}{unit}", "yes" if one.is_flat else "no"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _quoted(failures: list[str]) -> list[str]:
    return [line for failure in failures for line in ("```text", *failure.splitlines(), "```")]


def plot(readings: list[Reading]) -> bytes:
    """Every measure and the requests over time, a row each, with a line at each start, as PNG."""
    names = [*(measure.name for measure in MEASURES), "requests"]
    canvas = Canvas(1.4 * len(names) + 0.8)
    canvas.figure.suptitle("soak: what the server held", fontproperties=canvas.font(12.0))
    minutes = [reading.seconds / 60 for reading in readings]
    starts = [later.seconds / 60 for earlier, later in itertools.pairwise(readings) if later.life > earlier.life]
    rows = canvas.figure.subplots(len(names), 1, sharex=True)
    for axes, name in zip(rows, names, strict=True):
        for life in {reading.life for reading in readings}:
            own = [number for number, reading in enumerate(readings) if reading.life == life]
            values = [getattr(readings[number], name) for number in own]
            axes.plot([minutes[number] for number in own], values, color=_COLOUR, linewidth=1.0)
        for start in starts:
            axes.axvline(start, color=_KILL, linewidth=0.8)
        axes.set_ylim(bottom=0)
        unit = next((measure.unit for measure in MEASURES if measure.name == name), "")
        axes.set_ylabel(f"{name} {unit}".strip(), fontproperties=canvas.font(NOTE_SIZE))
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    rows[-1].set_xlabel("minutes; red: the server was killed, and began again", fontproperties=canvas.font())
    return canvas.png()
