"""Runs every point of the table of faults, records what came of it, and shows the record as a table.

`python -m tests.faults.points` runs all changes, or those that it is given, and writes `recorded.json`;
`python -m tests.tables` then writes the page.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from tests.faults.changes import CHANGES, contents, fill
from tests.faults.layer import Fault, compile_layer
from tests.shared_files import ROOT

RECORD = Path(__file__).with_name("recorded.json")

_HEADINGS = {
    Fault.FAIL: "fails (EIO)",
    Fault.FULL: "disk full from here on",
    Fault.SHORT: "writes half",
    Fault.KILL: "killed here",
}
_NEED_ROOM = ("write", "create", "make", "truncate")


@dataclass(frozen=True, slots=True)
class Point:
    """What came of a fault at one step of a change.

    `told`: what the client got, or `killed`. `left`: what a start finds then: `before`, `after`, or what else.
    `again`: what the client got who made the change again, with the same process where that lives.
    """

    change: str
    step: str
    fault: str
    told: str
    left: str
    again: str


def run_points(
    folder: Path, *, changes: Sequence[str] = tuple(CHANGES), faults: Sequence[Fault] = tuple(_HEADINGS)
) -> Iterator[Point]:
    """Every step of the changes with every one of the faults that it may have; needs a C compiler.

    A disk becomes read-only before the first step.
    """
    origin = folder / "origin"
    fill(origin)
    before = contents(_copied(origin, folder / "before"))
    with _worker(compile_layer(folder)) as process:
        for change in changes:
            runs = _Runs(folder, origin, process, change)
            steps, after = runs.dry()
            for number, step in enumerate(_numbered(steps)):
                for fault in faults:
                    if fault is Fault.SHORT and not step.startswith("write"):
                        continue
                    if fault is Fault.FULL and not step.startswith(_NEED_ROOM):
                        continue
                    if fault is Fault.READ_ONLY and number > 0:
                        continue
                    told, left, again = runs.faulty(number, fault)
                    state = "before" if left == before else "after" if left == after else "neither"
                    yield Point(change, step, fault.name.lower(), told, state, again)


class _Runs:
    """Runs of one change, each on a copy of a folder."""

    def __init__(self, folder: Path, origin: Path, process: subprocess.Popen[str], change: str) -> None:
        self._folder = folder / "run"
        self._origin = origin
        self._process = process
        self._change = change

    def dry(self) -> tuple[list[str], dict[str, Any]]:
        """The steps of the change, and what there is after it."""
        told = self._run(-1, Fault.FAIL)
        assert told["told"] == "done", told
        return told["steps"], contents(self._folder / "copy")

    def faulty(self, step: int, fault: Fault) -> tuple[str, dict[str, Any], str]:
        """What the client got, what there is after a start, and what the client got the second time."""
        told = self._run(step, fault)
        if fault is Fault.KILL:
            assert not told, told
            return "killed", contents(self._folder / "data"), ""
        left = contents(self._folder / "copy")
        assert told["read"] == (repr(left) if fault.lasts else None), told
        return told["told"], left, told["again"]

    def _run(self, step: int, fault: Fault) -> dict[str, Any]:
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir()
        data, task = _copied(self._origin, self._folder / "data"), self._folder / "task.json"
        asked = {"folder": str(data), "copy": str(self._folder / "copy"), "change": self._change}
        task.write_text(json.dumps(asked | {"step": step, "fault": int(fault)}))
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{task}\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "ended\n"
        if not task.with_suffix(".told").exists():
            return {}
        told: dict[str, Any] = json.loads(task.with_suffix(".told").read_text())
        return told | {"again": json.loads(task.with_suffix(".again").read_text())}


def _worker(library: Path) -> subprocess.Popen[str]:
    environ = {**os.environ, "LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.faults.worker"]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def _copied(origin: Path, target: Path) -> Path:
    shutil.copytree(origin, target)
    return target


def _numbered(steps: Iterable[str]) -> list[str]:
    """The steps without what differs from run to run."""
    shown = []
    for step in steps:
        text = re.sub(r"[0-9a-f]{64}", "{revision}", step)
        text = re.sub(r"file-[0-9a-f]{24}", "{file}", text)
        text = re.sub(r"\.\d+\.\d+\.tmp$", ".tmp", text)
        shown.append(text.rstrip("/"))
    return shown


def recorded() -> list[Point]:
    """The points as they were last recorded."""
    return [Point(**point) for point in json.loads(RECORD.read_text(encoding="utf-8"))]


def faults_markdown() -> str:
    """The record as a table: a row for each step, or for several that follow each other and end alike."""
    rows = []
    for (change, step, _), points in groupby(_with_numbers(recorded()), key=lambda pair: pair[0]):
        rows.append((change, step, {point.fault: _cell(point) for _, point in points}))
    lines = ["| change | step | " + " | ".join(_HEADINGS.values()) + " |", "|---|---|" + "---|" * len(_HEADINGS)]
    for (change, step, cells), same in groupby(rows, key=lambda row: (row[0], row[1], tuple(row[2].items()))):
        number = len(list(same))
        times = f" ({number} times)" if number > 1 else ""
        by_fault = dict(cells)
        shown = [by_fault.get(fault.name.lower(), "–") for fault in _HEADINGS]
        lines.append(f"| {change} | {step}{times} | " + " | ".join(shown) + " |")
    return "\n".join(lines) + "\n"


def _with_numbers(points: Iterable[Point]) -> Iterator[tuple[tuple[str, str, int], Point]]:
    """Each point with its change, its step and how often that step began before: the same step may come again."""
    number, seen = 0, set[str]()
    last = ("", "")
    for point in points:
        if (point.change, point.step) != last or point.fault in seen:
            number, seen, last = number + 1, set(), (point.change, point.step)
        seen.add(point.fault)
        yield (point.change, point.step, number), point


def _cell(point: Point) -> str:
    told = "" if point.told == "killed" else f"{point.told}; "
    return f"{told}{'as before' if point.left == 'before' else 'done' if point.left == 'after' else point.left}"


def main(changes: Sequence[str]) -> None:
    """Run the points of the named changes, or all, and record them."""
    chosen = changes or tuple(CHANGES)
    with tempfile.TemporaryDirectory(prefix="tiller-faults-") as folder:
        found = list(run_points(Path(folder), changes=chosen))
    kept = [point for point in recorded() if point.change not in chosen] if RECORD.exists() else []
    order = list(CHANGES)
    points = [asdict(point) for point in sorted([*kept, *found], key=lambda point: order.index(point.change))]
    RECORD.write_text("[\n" + ",\n".join(json.dumps(point) for point in points) + "\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
