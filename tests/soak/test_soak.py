"""The soak for a minute; and that its ledger and its judgement notice what is lost and what leaks."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.soak.ledger import Job, Ledger, Name, SoakFailed
from tests.soak.life import Tally
from tests.soak.readings import MEASURES, Reading, judge
from tests.soak.report import write_report
from tests.soak.run import Plan, Soak

A, B = "a" * 64, "b" * 64


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="no /proc")
def test_a_minute_of_everything_and_a_kill(tmp_path: Path) -> None:
    soak = Soak(Plan(60, 300, tmp_path / "data"), lambda done, text: None)
    assert soak.run(), "\n".join(soak.failures)
    write_report(soak, tmp_path)
    assert (tmp_path / "soak.png").read_bytes().startswith(b"\x89PNG")
    assert soak.ledger.num_acknowledged > 20
    assert {client.name for client in soak.clients} <= soak.tally.done.keys(), "somebody did nothing"


def cut_short(before: Name | None, after: Name | None) -> Ledger:
    """A kill came within a change."""
    ledger = Ledger({"v": before} if before else {})
    ledger.begin_change("v", after)
    ledger.note_kill()
    return ledger


def test_a_change_that_a_kill_cut_short_is_made_or_not() -> None:
    old, new = Name(A, (A,)), Name(B, (B, A))
    for found in ({"v": old}, {"v": new}):
        ledger = cut_short(old, new)
        ledger.settle_vectors(found)
        assert ledger.vectors == found
    for before, after, wrong in ((old, new, {}), (old, new, {"v": Name(B, (B,))}), (old, None, {"v": new})):
        with pytest.raises(SoakFailed, match="vector v"):
            cut_short(before, after).settle_vectors(wrong)


@pytest.mark.parametrize("found", [{}, {"v": Name(A, (A,))}, {"v": Name(B, (B,))}, {"v": Name(A, (B, A))}])
def test_an_acknowledged_revision_that_is_lost_is_noticed(found: dict[str, Name]) -> None:
    ledger = Ledger()
    for revision in (A, B):
        ledger.begin_change("v", Name.put(ledger.vectors.get("v"), revision))
        ledger.end_change("v", is_made=True)
    ledger.settle_vectors({"v": Name(B, (B, A))})
    with pytest.raises(SoakFailed, match="vector v"):
        ledger.settle_vectors(found)


def test_files_that_are_lost_changed_or_back_are_noticed() -> None:
    ledger = Ledger()
    ledger.add_file("f", b"content")
    whole = dict(ledger.files)
    ledger.settle_files({"f": "name"}, whole)
    for found, contents in (({}, {}), ({"f": "name"}, {"f": "0"}), ({"f": "name", "g": "n"}, whole | {"g": "0"})):
        with pytest.raises(SoakFailed, match="the file"):
            ledger.settle_files(found, contents)
    ledger.begin_upload("half sent")
    ledger.begin_deletion("f")
    ledger.settle_files({"g": "half sent"}, {"g": "0"})
    assert ledger.files == {"g": "0"}


def test_a_job_ends_as_it_must_and_stays_so() -> None:
    for kind, status, code in (("good", "failed", "x"), ("bad", "succeeded", None), ("good", "cancelled", None)):
        with pytest.raises(SoakFailed, match="job"):
            Job(kind, "j").check_end(status, code)  # type: ignore[arg-type]  # the cases are strings
    with pytest.raises(SoakFailed, match="cancelled"):
        Job("good", "j", is_cancelled=True).check_end("succeeded", None)
    with pytest.raises(SoakFailed, match="interrupted"):
        Job("good", "j", num_kills=1).check_end("failed", "interrupted")
    Job("good", "j", num_kills=3).check_end("failed", "interrupted")
    ledger = Ledger(jobs={"j": Job("good", "j", status="succeeded")})
    for found in ({}, {"j": "failed"}, {"j": "succeeded", "k": "queued"}):
        with pytest.raises(SoakFailed, match="job"):
            ledger.settle_jobs(found, {"j": "j", "k": "k"})


def test_a_5xx_without_a_reason_and_a_500_are_noticed() -> None:
    tally = Tally()
    tally.note(503, b'{"error": {"code": "storage_failed"}}', "GET /")
    for status, content in ((500, b'{"error": {"code": "engine_failure"}}'), (503, b""), (502, b'{"code": 1}')):
        with pytest.raises(SoakFailed, match=str(status)):
            tally.note(status, content, "GET /")


@pytest.mark.parametrize("leaking", [measure.name for measure in MEASURES])
def test_what_grows_is_noticed_and_what_goes_up_and_down_is_not(leaking: str) -> None:
    def at(number: int, growth: float) -> Reading:
        held = dict.fromkeys((measure.name for measure in MEASURES), 100.0 + 5 * (number % 3))
        held[leaking] += growth * number
        return Reading(number, number // 60, number, number // 20, **held)

    assert all(judgement.is_flat for judgement in judge([at(number, 0.0) for number in range(120)]))
    wrong = [judgement for judgement in judge([at(number, 8.0) for number in range(120)]) if not judgement.is_flat]
    assert {judgement.measure.name for judgement in wrong} == {leaking}
    assert "life 1 beside life 0" in {judgement.where for judgement in wrong}
