"""The search: directions from texts, and the direction, layer and scale that answer most validation items correctly.

Directions are mean activations of one group of texts minus another's (Cui & Chen 2025, arXiv:2509.22739), read at every
layer and site in one pass. All cells of the grid are asked together, at a cost of one token per item.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vectors.training.contrast import Contrast
from vectors.training.examiner import Advance, Examiner, Question, Steerings, answers_of
from vectors.training.method import Method
from vectors.training.model_view import ModelView, Steering
from vectors.training.prompts import Text
from vectors.training.race import Right, race
from vectors.vector import SteeringVector
from vectors.vocabulary import Place, Site

Directions = Mapping[Site, Tensor]
"""float32 `[layers, hidden]` by site: the direction to add at each layer."""


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


class MeanActivations:
    """Sums of activations by group of texts; each distinct text is read once. float64, so order hardly matters."""

    def __init__(self, view: ModelView, examiner: Examiner, sites: Sequence[Site]) -> None:
        self._probe = view
        self._examiner = examiner
        self._sites = tuple(sites)
        self.num_tokens = 0

    def of(
        self, groups: Sequence[Sequence[Text]], advance: Advance, kept: KeptActivations | None = None
    ) -> list[tuple[Directions, Mapping[Site, Tensor]]]:
        """For each group the mean activation `[layers, hidden]` and the mean length of activations `[layers]`.

        `kept` receives the activations themselves.
        """
        texts = list(dict.fromkeys(text for group in groups for text in group))
        prompts = [self._examiner.tokens_of(text) for text in texts]
        self.num_tokens += sum(map(len, prompts))
        members: dict[Text, list[int]] = {}  # a text that appears twice in a group counts twice
        for number, group in enumerate(groups):
            for text in group:
                members.setdefault(text, []).append(number)
        shape = (len(groups), len(self._sites), self._probe.num_layers)
        sums = torch.zeros(*shape, self._probe.hidden_size, dtype=torch.float64)
        lengths = torch.zeros(shape, dtype=torch.float64)
        for num_done, (index, found) in enumerate(self._probe.activations(prompts, self._sites), 1):
            if kept is not None:
                kept.add(texts[index], found)
            activation = torch.stack([found[site] for site in self._sites]).double()
            length = activation.norm(dim=-1)
            for number in members[texts[index]]:
                sums[number] += activation
                lengths[number] += length
            advance(num_done)
        counts = torch.tensor([max(1, len(group)) for group in groups], dtype=torch.float64)
        means, mean_lengths = sums / counts[:, None, None, None], lengths / counts[:, None, None]
        return [
            (dict(zip(self._sites, own, strict=True)), dict(zip(self._sites, own_lengths, strict=True)))
            for own, own_lengths in zip(means, mean_lengths, strict=True)
        ]


class KeptActivations:
    """The activations of some texts, float32, at the `layers` to be steered: the output of a layer, or with
    `reads_at_input` that of the one before for the residual site.
    """

    def __init__(self, texts: Iterable[Text], layers: Sequence[int], *, reads_at_input: bool) -> None:
        self._texts = frozenset(texts)
        self._layers = tuple(layers)
        self._reads_at_input = reads_at_input
        self._found: dict[Text, dict[Site, Tensor]] = {}

    def add(self, text: Text, activations: Mapping[Site, Tensor]) -> None:
        """Keep those of a text if it is one of them, `[layers of the model, hidden]` by site."""
        if text not in self._texts:
            return
        self._found[text] = {site: found[list(self._sources(site))] for site, found in activations.items()}

    def of(self, texts: Sequence[Text], place: Place) -> npt.NDArray[np.float64]:
        """Those of `texts` at a place, `[texts, hidden]`."""
        site, layer = place
        row = self._layers.index(layer)
        found: npt.NDArray[np.float64] = torch.stack([self._found[text][site][row] for text in texts]).double().numpy()
        return found

    def _sources(self, site: Site) -> Iterable[int]:
        shift = 1 if self._reads_at_input and site == "residual" else 0
        return (layer - shift for layer in self._layers)


def directions_of(
    contrasts: Mapping[str, Contrast],
    shown: Sequence[Text],
    means: MeanActivations,
    *,
    reads_at_input: bool,
    advance: Advance,
    kept: KeptActivations | None = None,
) -> tuple[dict[str, Directions], Mapping[Site, Tensor]]:
    """The directions of every variant, and the mean length of the activations of `shown` at every layer.

    `kept` receives the activations of its texts. With `reads_at_input` the residual direction for layer L is the
    difference at the output of layer L - 1; layer 0 then has none (zeros).
    """
    groups: list[Sequence[Text]] = [shown]
    for contrast in contrasts.values():
        groups += [contrast.positive, contrast.negative]
    (_, lengths), *found = means.of(groups, advance, kept)
    directions: dict[str, Directions] = {}
    for number, variant in enumerate(contrasts):
        (positive, _), (negative, _) = found[2 * number : 2 * number + 2]
        difference = {site: (positive[site] - negative[site]).float() for site in positive}
        if reads_at_input and "residual" in difference:
            shifted = difference["residual"].roll(1, dims=0)
            shifted[0] = 0.0
            difference["residual"] = shifted
        directions[variant] = difference
    return directions, lengths


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
