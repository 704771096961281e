"""Scores: what a probe has read of the tokens of a plain model, by layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from vectors.operations import Reading
from vectors.plain.passes import PassPlace
from vectors.positions import Positions
from vectors.vocabulary import Place


class Scores(Mapping[int, Tensor]):
    """By layer, float32 `[batch, tokens]` (CPU): the score of each token of the latest sequences, NaN where it was not
    read, as outside of the positions and in padding on the left.

    A pass that begins at the first token, or has another batch, begins anew; one that continues from a cache adds to
    what there is. Rows are those of the passes, so beams are not followed. The token after position i was chosen where
    `scores[layer][:, i]` was read.
    """

    def __init__(self, readings: Mapping[Place, Reading], positions: Positions, *, is_before: bool) -> None:
        self.readings = readings
        self.is_before = is_before
        self._positions = positions
        self._found: dict[int, Tensor] = {}

    def __getitem__(self, layer: int) -> Tensor:
        return self._found[layer]

    def __iter__(self) -> Iterator[int]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    def note(self, place: Place, activations: Tensor, tokens: PassPlace) -> None:
        """Read `activations` `[batch · width, hidden]` of a pass at `place`."""
        found = self.readings[place].to(activations.device).of(activations.to(torch.float32)).squeeze(-1)
        numbers = torch.arange(tokens.first, tokens.first + tokens.width, device=tokens.device)
        is_read = tokens.covered(self._positions) & (numbers >= tokens.start)
        new = torch.where(is_read.cpu(), found.view(tokens.batch, tokens.width).cpu(), torch.nan)
        known = self._found.get(place[1])
        if known is None or len(known) != tokens.batch:
            known = torch.empty(tokens.batch, 0)
        kept = known[:, : tokens.first]
        gap = torch.full((tokens.batch, tokens.first - kept.shape[1]), torch.nan)
        self._found[place[1]] = torch.cat([kept, gap, new], dim=1)
