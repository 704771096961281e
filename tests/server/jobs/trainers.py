"""Trainers for tests: a small real one, and ones that wait, fail or are cut off when a test wants it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable

import torch

from server.jobs.records import JobRecord, JobRequest
from server.jobs.trainer import Outcome, Progress, ReadFile
from vectors.cancellation import Cancelled
from vectors.errors import InvalidData
from vectors.training.method import Method
from vectors.vector import SteeringVector

HIDDEN = 32
LAYERS = 3
PHASES = ("read", "extract", "sweep")

LINES = [{"positive": f"yes, {word}", "negative": f"no {word}, never"} for word in ("one", "two", "three", "four")]
DATA = "\n".join(json.dumps(line) for line in LINES).encode()


def features(text: str) -> torch.Tensor:
    """How often each class of bytes is in `text`."""
    codes = torch.tensor([code % HIDDEN for code in text.encode()])
    return torch.bincount(codes, minlength=HIDDEN).float()


class PairTrainer:
    """The mean difference of `positive` and `negative` texts, at the first of the method's layers."""

    def check(self, job: JobRequest) -> None:
        """Refuse what is no method for a model of `LAYERS` blocks."""
        Method.from_json(job.steering).layers_for(LAYERS)

    def run(
        self,
        job: JobRecord,
        read_file: ReadFile,
        report: Callable[[Progress], None],
        is_cancelled: Callable[[], bool],
    ) -> Outcome:
        """Read, extract, sweep; honours cancellation between any two items."""
        method = Method.from_json(job.steering)
        pairs: list[tuple[torch.Tensor, torch.Tensor]] = []
        texts = self._read(*read_file(job.training_file))
        for phase in PHASES:
            for number, (positive, negative) in enumerate(texts, start=1):
                self.between(phase, number, is_cancelled)
                if is_cancelled():
                    raise Cancelled
                if phase == "extract":
                    pairs.append((features(positive), features(negative)))
                best = 1.0 / number if phase == "sweep" else None
                report(Progress(phase, number, len(texts), best, float(len(texts) - number)))
        difference = sum(one for one, _ in pairs) / len(pairs) - sum(other for _, other in pairs) / len(pairs)
        assert isinstance(difference, torch.Tensor)
        vector = SteeringVector({method.layers_for(LAYERS)[0]: difference}, metadata={"seed": job.seed})
        report_file = json.dumps({"items": len(texts), "seed": job.seed}).encode()
        files = (("report.json", report_file), ("grid.png", b"\x89PNG" + bytes(4000)))
        helps = not any("unhelpful" in positive for positive, _ in texts)
        published = vector if helps or method.allow_no_gain else None
        return Outcome(published, "it helps" if helps else "it does not help", files, 100 * len(texts), helps)

    def between(self, phase: str, number: int, is_cancelled: Callable[[], bool]) -> None:
        """Called before each item."""

    def _read(self, name: str, content: bytes) -> list[tuple[str, str]]:
        texts = []
        for number, line in enumerate(content.splitlines(), start=1):
            try:
                entry = json.loads(line)
                texts.append((str(entry["positive"]), str(entry["negative"])))
            except (ValueError, KeyError, TypeError):
                raise InvalidData("no positive and negative", name, number) from None
        return texts


class GatedTrainer(PairTrainer):
    """Waits before the item `at` (phase, number) until the gate is opened or it is cancelled."""

    def __init__(self, at: tuple[str, int] = ("extract", 2)) -> None:
        self.at = at
        self.gate = threading.Event()
        self.has_come = threading.Event()
        self.order: list[str] = []

    def run(
        self,
        job: JobRecord,
        read_file: ReadFile,
        report: Callable[[Progress], None],
        is_cancelled: Callable[[], bool],
    ) -> Outcome:
        """Note whose turn it was."""
        self.order.append(job.id)
        return super().run(job, read_file, report, is_cancelled)

    def between(self, phase: str, number: int, is_cancelled: Callable[[], bool]) -> None:
        """Wait at the gate."""
        if (phase, number) == self.at:
            self.has_come.set()
            while not self.gate.wait(0.005) and not is_cancelled():
                pass


class FailingTrainer(PairTrainer):
    """Raises in the middle of its work."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def between(self, phase: str, number: int, is_cancelled: Callable[[], bool]) -> None:
        """Raise in the second phase."""
        if phase == "extract":
            raise self.error
