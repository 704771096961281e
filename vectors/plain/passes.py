"""PassPlace: where the tokens of one forward pass stand in their sequences, and which positions cover them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from vectors.positions import Positions, Window


@dataclass(frozen=True, slots=True)
class PassPlace:
    """Tokens `first … first + width - 1` of `batch` sequences.

    `start` and `last` are the first and the last token of each prompt, int64 `[batch, 1]` where they differ.
    """

    batch: int
    width: int
    first: int
    start: int | Tensor
    last: int | Tensor
    device: torch.device

    def covered(self, positions: Positions) -> Tensor:
        """Bool `[batch, width]`: the tokens that `positions` covers."""
        numbers = torch.arange(self.first, self.first + self.width, device=self.device).expand(self.batch, self.width)
        in_prompt, in_response = numbers <= self.last, numbers >= self.last
        if positions == "prompt":
            return in_prompt
        if positions == "response":
            return in_response
        if not isinstance(positions, Window):
            return torch.ones_like(in_prompt)
        if positions.of == "response":
            return in_response & _is_within(numbers - self.last, positions.start, positions.end)
        is_prompt = in_prompt & (numbers >= self.start)
        if positions.start < 0:
            return is_prompt & (numbers > self.last + positions.start)
        return is_prompt & _is_within(numbers - self.start, positions.start, positions.end)

    def tokens_by_coverage(self, used: Iterable[Positions]) -> dict[frozenset[Positions], Tensor | None]:
        """By those of `used` that cover them, the numbers of tokens, int64 `[tokens]` of `batch · width`; None: all."""
        every = sorted(used, key=str)
        if isinstance(self.last, int) and self.last < self.first and not any(isinstance(one, Window) for one in every):
            return {frozenset(one for one in every if one != "prompt"): None}
        kinds = torch.zeros(self.batch, self.width, dtype=torch.int64, device=self.device)
        for number, positions in enumerate(every):
            kinds = kinds + (self.covered(positions).to(torch.int64) << number)
        flat = kinds.flatten()
        found: dict[frozenset[Positions], Tensor | None] = {}
        for kind in sorted(set(flat.tolist())):
            covering = frozenset(one for number, one in enumerate(every) if kind >> number & 1)
            found[covering] = (flat == kind).nonzero().squeeze(1)
        return found


def _is_within(numbers: Tensor, start: int, end: int | None) -> Tensor:
    return (numbers >= start) if end is None else (numbers >= start) & (numbers < end)
