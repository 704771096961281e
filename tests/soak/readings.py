"""What the server held, second by second, and whether that was flat."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from tests.server.cli.levels import Levels, metrics

WARMING = 0.25
"""The share of a life that is not judged: caches fill, threads and connections begin.

Nor is what comes before its first training has ended, which imports what plots and tests for significance: 120 MiB.
"""

FEWEST = 9
"""Readings that a life must have after it is warm to be judged."""


@dataclass(frozen=True)
class Measure:
    """Something that must be flat: in each life, and from the first life to the last."""

    name: str
    unit: str
    bound: float
    """By how much the median of the last third may lie above that of the first, under a load that goes up and down."""


MEASURES = (
    Measure("memory", "MiB", 48.0),
    Measure("descriptors", "", 16.0),
    Measure("threads", "", 12.0),
    Measure("pages", "", 128.0),
    Measure("rows", "", 24.0),
)


@dataclass(frozen=True)
class Reading:
    """One moment. `seconds` since the soak began; `requests`: answered since then; `trained`: jobs that succeeded."""

    seconds: float
    life: int
    requests: int
    trained: int
    memory: float
    descriptors: float
    threads: float
    pages: float
    rows: float

    @classmethod
    def of(cls, process_id: int, url: str, seconds: float, life: int, requests: int, trained: int) -> Reading:
        """Now; it blocks."""
        levels, told = Levels.of(process_id), metrics(url)
        return cls(
            seconds,
            life,
            requests,
            trained,
            memory=levels.mebibytes,
            descriptors=levels.num_files,
            threads=levels.num_threads,
            pages=told["tiller:kv_pages"] - told["tiller:kv_pages_free"],
            rows=told["tiller:steering_rows_in_use"],
        )


@dataclass(frozen=True)
class Judgement:
    """A measure over a life, or over all of them: medians of the first and the last third."""

    measure: Measure
    where: str
    first: float
    last: float

    @property
    def is_flat(self) -> bool:
        """Within the bound."""
        return self.last - self.first <= self.measure.bound

    def __str__(self) -> str:
        change = f"{self.first:.0f} to {self.last:.0f} {self.measure.unit}".rstrip()
        return f"{self.measure.name} in {self.where}: from {change}, at most {self.measure.bound:g} more is allowed"


def judge(readings: Sequence[Reading]) -> list[Judgement]:
    """Every measure in each life that is long enough, and in the last life beside the first one."""
    found = []
    lives = []
    for number in sorted({reading.life for reading in readings}):
        life = [reading for reading in readings if reading.life == number]
        warm = [reading for reading in life[int(len(life) * WARMING) :] if reading.trained > life[0].trained]
        if len(warm) >= FEWEST:
            lives.append((number, warm))
    for number, warm in lives:
        third = len(warm) // 3
        found += [_judged(measure, f"life {number}", warm[:third], warm[-third:]) for measure in MEASURES]
    if len(lives) > 1:
        (first, earlier), (last, later) = lives[0], lives[-1]
        found += [_judged(measure, f"life {last} beside life {first}", earlier, later) for measure in MEASURES]
    return found


def _judged(measure: Measure, where: str, first: Sequence[Reading], last: Sequence[Reading]) -> Judgement:
    medians = [statistics.median(getattr(reading, measure.name) for reading in part) for part in (first, last)]
    return Judgement(measure, where, *medians)
