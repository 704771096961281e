"""Progress of phased work: what is reported when, in which order, and what the phases' times add up to."""

from __future__ import annotations

import io
import time

import pytest

from vectors.training.progress import Progress, WorkPlan, progress_line


def planned(**expected: float) -> tuple[WorkPlan, list[Progress]]:
    """A plan and everything that it reports."""
    reported: list[Progress] = []
    return WorkPlan(reported.append, expected), reported


def test_every_step_is_reported_as_it_is_told() -> None:
    plan, reported = planned(reading=2.0, asking=3.0)
    plan.begin("reading", 2)
    plan.advance(1)
    plan.advance(2)
    plan.begin("asking", 1)
    plan.best = 0.5
    plan.advance(1)
    plan.end()
    assert [(step.phase, step.num_done, step.num_total, step.best) for step in reported] == [
        ("reading", 0, 2, None),
        ("reading", 1, 2, None),
        ("reading", 2, 2, None),
        ("asking", 0, 1, None),
        ("asking", 1, 1, 0.5),
    ]


def test_the_time_left_is_unknown_until_something_is_done_and_none_at_the_end() -> None:
    plan, reported = planned(reading=4.0, asking=4.0)
    plan.begin("reading", 4)
    for num_done in range(1, 5):
        plan.advance(num_done)
    plan.begin("asking", 1)
    assert [step.seconds_left is None for step in reported] == [True] + [False] * 5
    assert all(step.seconds_left is None or step.seconds_left >= 0 for step in reported)
    plan.advance(1)
    assert reported[-1].seconds_left == pytest.approx(0, abs=1e-9)


def test_work_left_falls_as_phases_pass() -> None:
    """Against the time gone by, which the test itself cannot know exactly: left ÷ done only falls."""
    started = time.monotonic()
    plan, reported = planned(first=1.0, second=2.0, third=1.0)
    shares = []
    for phase in ("first", "second", "third"):
        plan.begin(phase, 2)
        for num_done in (1, 2):
            plan.advance(num_done)
            left = reported[-1].seconds_left
            assert left is not None
            assert left <= (time.monotonic() - started) * 7  # after an eighth of the work seven are left
            shares.append(left > 0)
    assert shares == [True] * 5 + [False]


def test_a_phase_entered_again_adds_to_its_time() -> None:
    plan, reported = planned(answering=1.0, searching=1.0)
    started = time.monotonic()
    for phase in ("answering", "searching", "answering"):
        plan.begin(phase, 1)
        plan.advance(1)
    plan.end()
    total = time.monotonic() - started
    assert list(plan.seconds) == ["answering", "searching"]
    assert all(seconds >= 0 for seconds in plan.seconds.values())
    assert sum(plan.seconds.values()) <= total
    assert len(reported) == 6


def test_a_phase_that_nobody_expected_weighs_nothing() -> None:
    plan, reported = planned(known=1.0)
    plan.begin("surprise", 3)
    plan.advance(3)
    assert reported[-1].seconds_left is None
    plan.begin("known", 1)
    plan.advance(1)
    plan.end()
    assert set(plan.seconds) == {"surprise", "known"}
    assert reported[-1].seconds_left == pytest.approx(0, abs=1e-9)


def test_a_phase_without_work_divides_by_nothing() -> None:
    plan, reported = planned(empty=1.0)
    plan.begin("empty", 0)
    plan.end()
    assert [(step.num_done, step.num_total) for step in reported] == [(0, 0)]


def test_ending_twice_counts_once() -> None:
    plan, _ = planned(only=1.0)
    plan.begin("only", 1)
    plan.end()
    before = dict(plan.seconds)
    plan.end()
    assert plan.seconds == before


@pytest.mark.parametrize(
    ("progress", "shown"),
    [
        (Progress("x", 3, 0), ""),
        (Progress("x", 3, 0, seconds_left=5.0), ""),
        (Progress("x", 120, 400), "120 of 400"),
        (Progress("x", 0, 4, 0.632, 44.6), "0 of 4, best so far 63.2 %, about 0:45 left"),
        (Progress("x", 1, 4, seconds_left=3723.0), "1 of 4, about 1:02:03 left"),
    ],
)
def test_counts_say_what_is_known(progress: Progress, shown: str) -> None:
    assert progress.counts == shown


class Terminal(io.StringIO):
    """A text stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_has_one_line_that_vanishes() -> None:
    stream = Terminal()
    with progress_line(stream) as report:
        report(Progress("answering", 100, 100, seconds_left=9.0))
        report(Progress("searching", 1, 2))
    lines = stream.getvalue().split("\r")
    assert [line.rstrip() for line in lines] == [
        "",
        "answering: 100 of 100, about 0:09 left",
        "searching: 1 of 2",
        "",
        "",
    ]
    assert len(lines[2]) >= len(lines[1])
    assert len(lines[3]) >= len(lines[2].rstrip())
    assert "\n" not in stream.getvalue()


def test_what_is_no_terminal_stays_empty() -> None:
    stream = io.StringIO()
    with progress_line(stream) as report:
        report(Progress("answering", 1, 2))
    assert stream.getvalue() == ""
