"""The branches of one sequence: its last prompt token under many plans, and which rows the next chunk computes.

A plan that differs from the sequence's own only from some point on has nothing to compute below: its row enters there
and goes on from the stream of a **base** row, the last token under the sequence's own plan, which its chunk computes
from the embedding on (`late_entry.py`).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from server.engine.entry_points import EntryPoints
from server.steering.plan import Scope, SteeringPlan, decisive_length


@dataclass(frozen=True, slots=True)
class BranchRows:
    """The rows of a chunk: a base row if `has_base`, then one for each of `branches`, which are indices of plans.

    `entries`: the point of `EntryPoints` at which each row enters, ascending; the base's is 0, and without a base all
    are.
    """

    has_base: bool
    branches: Sequence[int]
    entries: Sequence[int]


class Branches:
    """The logits under `plans`, wanted of a sequence with `num_prompt` tokens whose own plan is `own`.

    Rows may enter at `points`, if that saves more than a base row costs; without any, each computes every block.
    """

    def __init__(
        self, plans: tuple[SteeringPlan, ...], own: SteeringPlan, num_prompt: int, points: EntryPoints | None
    ) -> None:
        length = min(num_prompt, max(decisive_length(plans), own.decisive_length))
        self._order, self._entries = _arranged(plans, own, length, points)
        self._enters_late = any(self._entries)
        self._logits: list[Tensor] = []
        self._num_done = 0

    @property
    def num_done(self) -> int:
        """Plans whose logits are known."""
        return self._num_done

    @property
    def num_rows(self) -> int:
        """Rows that have to be computed; 0 when all plans are done."""
        num_left = len(self._order) - self._num_done
        return num_left + self._has_base(num_left)

    def next(self, num_rows: int) -> BranchRows:
        """The next chunk of 1 to the present `num_rows` rows."""
        has_base = self._has_base(num_rows)
        own = slice(self._num_done, self._num_done + num_rows - has_base)
        entries = [0, *self._entries[own]] if has_base else [0] * num_rows
        return BranchRows(has_base, self._order[own], entries)

    def add(self, logits: Tensor) -> None:
        """Note the logits `[branches, tokens]` of the next branches, in any dtype."""
        logits = logits.to(torch.float32).cpu()
        is_finite = torch.isfinite(logits).all(dim=-1, keepdim=True)
        self._logits.append(logits.where(is_finite, torch.nan))
        self._num_done += logits.shape[0]

    @property
    def logits(self) -> Tensor:
        """All logits, float32 `[plans, tokens]` (CPU), when there are no rows left; NaN in rows that are not finite."""
        found = torch.cat(self._logits)
        return torch.empty_like(found).index_copy_(0, torch.tensor(self._order), found)

    def _has_base(self, num_rows: int) -> bool:
        """A single row is a branch that computes every block."""
        return self._enters_late and num_rows > 1


@functools.lru_cache(maxsize=4)  # a search branches every prompt into the same plans
def _arranged(
    plans: tuple[SteeringPlan, ...], own: SteeringPlan, num_prompt: int, points: EntryPoints | None
) -> tuple[list[int], list[int]]:
    """The indices of `plans` by the point at which each enters, and these points."""
    entries = [0] * len(plans)
    if points is not None:
        base = own.at_boundary(num_prompt)
        latest = [_latest_entry(plan.at_boundary(num_prompt), base, points) for plan in plans]
        entries = latest if sum(latest) > points.num_points else entries
    order = sorted(range(len(plans)), key=entries.__getitem__)
    return order, [entries[branch] for branch in order]


def _latest_entry(scope: Scope, base: Scope, points: EntryPoints) -> int:
    """The last point before which all is computed alike under `scope` and `base`."""
    if scope.fingerprint == base.fingerprint:
        return points.num_points
    return min(map(points.after, scope.places | base.places))
