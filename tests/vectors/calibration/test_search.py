"""The searches find what they are defined to find, in few steps, for either sign."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from vectors.calibration.search import TOLERANCE, crossing, edge


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize(
    ("figure", "most"),
    [
        (lambda s: 0.3 * s**2, 2),
        (lambda s: 1e-5 * s**2, 9),
        (lambda s: 4e4 * s**2, 9),
        (lambda s: s**2 / (1 + abs(s)), 8),
        (lambda s: math.expm1(abs(s) ** 3), 8),
        (lambda s: s**2 if abs(s) < 3 else math.inf, 5),
        (lambda s: max(0.0, abs(s) - 0.9), 8),
    ],
)
def test_a_crossing_is_within_the_tolerance(figure: Callable[[float], float], most: int, sign: float) -> None:
    tried: list[float] = []

    def counted(scale: float) -> float:
        tried.append(scale)
        return figure(scale)

    found = crossing(counted, sign * 1.0, 2.0)
    assert found is not None
    assert found * sign > 0
    assert figure(found) == pytest.approx(2.0, rel=TOLERANCE)
    assert len(tried) <= most


def test_what_is_weak_everywhere_has_no_crossing() -> None:
    assert crossing(lambda scale: 1 - math.exp(-abs(scale)), 1.0, 2.0) is None
    assert crossing(lambda scale: 0.0, -1.0, 2.0) is None


@pytest.mark.parametrize("bound", [0.2, 0.7, 1.0, 1.5, 9.0])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_an_edge_is_just_within(bound: float, sign: float) -> None:
    found, is_end = edge(lambda scale: abs(scale) <= bound, sign)
    assert is_end
    assert found * sign > 0
    assert abs(found) <= bound < abs(found) * 1.1


def test_an_edge_ends_at_the_first_that_is_ill() -> None:
    assert edge(lambda scale: not 0.4 < scale < 0.9, 1.0)[0] < 0.45
    assert edge(lambda scale: True, 1.0) == (16.0, False)
    assert edge(lambda scale: False, 1.0) == (0.0, True)
