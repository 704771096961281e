"""The search: the direction, layer and scale that answer most validation items correctly.

All cells of the grid are asked together, at a cost of one token per item.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from vectors.training.directions import Directions
from vectors.training.examiner import Advance, Examiner, Question, Steerings, answers_of
from vectors.training.method import Method
from vectors.training.model_view import Steering
from vectors.training.race import Right, race
from vectors.vector import SteeringVector
from vectors.vocabulary import Place, Site


@dataclass(frozen=True, slots=True)
class Cell:
    """One point of the grid. `scale` multiplies the unnormalised direction; `shown_scale` is the method's own number.

    `dose` is the length of what is added, absolute and relative to the mean length of the activation there. `accuracy`
    (0 … 1) is on the validation items, None before all of them are asked. `bounds`: the least and the most that it can
    be, if the race left the cell out before. `loss` is how much accuracy it costs on the retention items of the search,
    None if it has none.
    """

    variant: str
    site: Site
    layer: int
    shown_scale: float
    scale: float
    dose: float
    relative_dose: float
    vector: SteeringVector
    accuracy: float | None = None
    bounds: tuple[float, float] | None = None
    loss: float | None = None

    @property
    def steering(self) -> tuple[Steering, ...]:
        """The cell as a steering."""
        return (Steering(self.vector, self.scale),)


def grid_of(
    directions: Mapping[str, Directions],
    lengths: Mapping[Site, Tensor],
    method: Method,
    layers: Iterable[int],
) -> list[Cell]:
    """Every cell, ordered by variant, site, layer (as given) and scale, except places without a direction."""
    places: list[tuple[str, Place]] = [
        (variant, (site, layer)) for variant in directions for site in method.sites for layer in layers
    ]
    cells = []
    for variant, (site, layer) in places:
        direction = directions[variant][site][layer]
        norm = float(direction.double().norm())
        if not 0.0 < norm < float("inf"):
            continue
        vector = SteeringVector({layer: direction}, site=site)
        unit = float(lengths[site][layer]) / norm if method.relative_scales else 1.0
        for shown_scale in method.scale_grid(site):
            scale = shown_scale * unit
            dose = abs(scale) * norm
            relative = dose / max(float(lengths[site][layer]), 1e-12)
            cells.append(Cell(variant, site, layer, shown_scale, scale, dose, relative, vector))
    return cells


def best_of(cells: Sequence[Cell], *, is_paper: bool, max_loss: float = 1.0) -> Cell:
    """The cell with the highest validation accuracy. Ties go to the smallest dose, or to the first as in the paper.

    Cells that cost more than `max_loss` on the retention items of the search come after all others. Those that the race
    left out are none of the best.
    """

    def rank(cell: Cell) -> tuple[bool, float, float]:
        assert cell.accuracy is not None
        costs_too_much = cell.loss is not None and cell.loss > max_loss
        return (costs_too_much, -cell.accuracy, _tie(cell, is_paper=is_paper))

    return min((cell for cell in cells if cell.accuracy is not None), key=rank)


def _tie(cell: Cell, *, is_paper: bool) -> float:
    """Which of cells with equal accuracy comes first: the one with the smallest."""
    return 0.0 if is_paper else cell.relative_dose


def search(
    cells: Sequence[Cell],
    questions: Sequence[Question],
    examiner: Examiner,
    advance: Advance,
    retained: Sequence[Question] = (),
) -> tuple[Right, list[Cell]]:
    """Which questions are answered right, `[1 + cells, questions]`, unsteered first; and the cells with their figures.

    `retained` are the retention items that the search may ask, if any.
    """
    steerings: Steerings = [(), *(cell.steering for cell in cells)]
    right = (examiner.choose(questions, steerings, advance) == answers_of(questions)).astype(np.int8)
    found = _with_accuracies(cells, right)
    if retained:

        def advance_further(num_done: int) -> None:
            advance(len(questions) + num_done)

        kept = examiner.choose(retained, steerings, advance_further) == answers_of(retained)
        plain, *steered = (float(value) for value in np.mean(kept, axis=1))
        found = [replace(cell, loss=plain - value) for cell, value in zip(found, steered, strict=True)]
    return right, found


def search_by_race(
    cells: Sequence[Cell],
    fields: Sequence[Sequence[int]],
    questions: Sequence[Question],
    examiner: Examiner,
    advance: Advance,
    *,
    is_paper: bool,
) -> tuple[Right, list[Cell]]:
    """As `search`, but cells stop when they cannot become the best of their field any more; see `race.py`.

    `fields`: the numbers of the cells from which one is chosen. `is_paper`: as in `best_of`.
    """
    steerings: Steerings = [(), *(cell.steering for cell in cells)]
    ties = [0.0, *(_tie(cell, is_paper=is_paper) for cell in cells)]
    numbers = [[1 + number for number in field] for field in fields]
    right = race(steerings, numbers, ties, questions, examiner, advance)
    return right, _with_accuracies(cells, right)


def _with_accuracies(cells: Sequence[Cell], right: Right) -> list[Cell]:
    """The cells with the accuracy, or what is known of it, that follows from `right` `[1 + cells, questions]`."""
    found = []
    for cell, row in zip(cells, right[1:], strict=True):
        low, high = bounds_of(row)
        found.append(replace(cell, accuracy=low) if low == high else replace(cell, bounds=(low, high)))
    return found


def bounds_of(row: Right) -> tuple[float, float]:
    """The least and the most that the accuracy of one row of `Right` can be; equal if every question was asked."""
    return float(np.mean(row == 1)), float(np.mean(row != 0))
