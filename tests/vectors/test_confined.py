"""What a child does comes back whole, and what it must not do ends it and nothing else."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from vectors import confined
from vectors.confined import Child, Limits, TaskFailed

MODULE = "tests.vectors.confined_task"
LIMITS = Limits(memory_mib=64, seconds=0.3)


@pytest.fixture(scope="module")
def child() -> Iterator[Child]:
    with Child(MODULE, LIMITS, b"set up") as made:
        yield made


def echoes(child: Child, text: bytes = b"abc") -> bool:
    return list(child.run(b"echo " + text)) == [b"set up", text]


def test_pieces_come_back_as_they_were(child: Child) -> None:
    for text in (b"", b"a", bytes(range(256)) * 10_000):
        assert echoes(child, text)
    assert list(child.run(b"allocate 20")) == [b"begun", str(20 << 20).encode()]
    assert 10 << 20 <= child.peak_bytes <= 64 << 20


def test_a_task_gives_way_to_the_process_that_waits_for_it(child: Child) -> None:
    """In the same session, since a scheduler may share the processors among sessions first."""
    assert list(child.run(b"standing")) == [f"{min(19, os.nice(0) + 10)} {os.getsid(0)}".encode()]


@pytest.mark.parametrize(
    ("task", "said"),
    [
        (b"allocate 100", "it takes more than 64 MiB of memory"),
        (b"spin", r"it takes more than 0\.3 s"),
        (b"crash", "it ends the process that does it"),
        (b"abort", "it takes more than 64 MiB of memory"),  # as allocators end a process
    ],
)
def test_a_task_that_fails_ends_nothing_but_itself(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, task: bytes, said: str
) -> None:
    monkeypatch.setattr(confined, "_WALL_SECONDS", 1e6)  # the processor's time alone ends what spins
    with Child(MODULE, LIMITS, b"set up") as child:  # a new one, whose standard error is what `capfd` captures
        with pytest.raises(TaskFailed, match=said):
            list(child.run(task))
        assert echoes(child)
    assert capfd.readouterr() == ("", "")


def test_a_task_that_waits_for_ever_takes_too_long(child: Child, monkeypatch: pytest.MonkeyPatch) -> None:
    """It uses no processor time, so that only the clock can tell."""
    assert echoes(child)
    monkeypatch.setattr(confined, "_WALL_SECONDS", 0.2)
    with pytest.raises(TaskFailed, match=r"it takes more than 0\.3 s"):
        list(child.run(b"wait"))
    monkeypatch.undo()
    assert echoes(child)


def test_a_bug_in_a_task_is_raised_as_one(child: Child) -> None:
    with pytest.raises(RuntimeError, match="no such task"):
        list(child.run(b"nonsense"))
    assert echoes(child)


def test_who_wants_no_more_pieces_gets_the_right_ones_next_time(child: Child) -> None:
    pieces = child.run(b"echo " + b"x" * (1 << 20))
    assert next(pieces) == b"set up"
    del pieces
    assert echoes(child)


def test_a_process_that_was_killed_is_replaced_and_a_closed_one_is_gone(child: Child) -> None:
    assert echoes(child)
    process = child._process
    assert process is not None
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert echoes(child)
    process = child._process
    assert process is not None
    child.close()
    assert process.returncode is not None
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)
    child.close()
    assert echoes(child)
