"""Nothing acknowledged is lost and nothing is half done, whichever step on the disk fails, and however."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.faults.changes import CHANGES
from tests.faults.layer import Fault, missing_tools
from tests.faults.points import Point, recorded, run_points

NEEDS_TOOLS = pytest.mark.skipif(missing_tools() is not None, reason=missing_tools() or "")


def check(points: Iterable[Point]) -> None:
    """What must hold at every point."""
    for point in points:
        assert point.left in ("before", "after"), point
        if point.told == "done":
            assert point.left == "after", point
        elif point.told != "killed":
            status = int(point.told.split()[0])
            assert status == 507 if point.fault == "full" else status == 503, point
            assert point.again == "done", point
        if point.fault == "short":
            assert point.told == "done", point


def test_the_record_has_every_change_and_holds() -> None:
    points = recorded()
    assert len(points) >= 60
    assert {point.change for point in points} == set(CHANGES)
    check(points)


@pytest.mark.slow
@pytest.mark.timeout(3000)
@NEEDS_TOOLS
def test_every_point_ends_as_recorded(tmp_path: Path) -> None:
    """If this differs for the better: `python -m tests.faults.points`, then `python -m tests.tables`."""
    points = list(run_points(tmp_path))
    check(points)
    assert points == recorded()


@NEEDS_TOOLS
def test_a_few_points(tmp_path: Path) -> None:
    """One small change of each kind of file, at every step."""
    check(run_points(tmp_path, changes=["roll back"]))


@NEEDS_TOOLS
def test_a_disk_that_has_become_read_only_refuses_each_change_and_is_read(tmp_path: Path) -> None:
    """And takes it once it can be written again."""
    points = list(run_points(tmp_path, faults=[Fault.READ_ONLY]))
    assert [point.change for point in points] == list(CHANGES)
    assert {(point.told, point.left, point.again) for point in points} == {("503 storage_failed", "before", "done")}
