"""Runs recurrent modules on packed batches: each on batches of sequences in place of the pack.

A recurrent module would take a pack for one long sequence. So its `forward` is replaced by one that, within a
`recurrent_step`, calls the module's own once for each group of sequences that are alike: with as many new tokens, and
beginning or not. All sequences that decode are one call.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from server.engine.current import Current
from server.engine.recurrent.states import RecurrentStates, StateCache


@dataclass(frozen=True, slots=True)
class Span:
    """The new tokens of one sequence: pack positions `[start, end)`, after the state in `slot`.

    `is_fresh`: the sequence begins here. Tokens that are branching each continue from the state and leave it unchanged.
    """

    start: int
    end: int
    slot: int
    is_fresh: bool
    is_branching: bool = False


@dataclass(frozen=True, slots=True)
class _Group:
    """Sequences of `length` new tokens each. `tokens`: int64 `[sequences * length]`, their positions in the pack; None
    when they are the whole pack, in order. `slots`: int64 `[sequences]`. The new states are kept if `is_kept`."""

    tokens: Tensor | None
    slots: Tensor
    length: int
    is_fresh: bool
    is_kept: bool


class RecurrentStep:
    """One forward pass over the `states`, on a pack that `spans` cover, in order and without gaps."""

    def __init__(self, states: RecurrentStates, spans: Sequence[Span], device: torch.device) -> None:
        self._states = states
        self._num_tokens = spans[-1].end
        alike: dict[tuple[int, bool, bool], list[tuple[int, int]]] = {}
        for span in spans:
            if span.is_branching:
                rows = [(token, span.slot) for token in range(span.start, span.end)]
                alike.setdefault((1, span.is_fresh, False), []).extend(rows)
            else:
                alike.setdefault((span.end - span.start, span.is_fresh, True), []).append((span.start, span.slot))
        self._groups = [_group(*kind, members, len(alike) == 1, device) for kind, members in alike.items()]

    def run(self, module: PackedForward, arguments: dict[str, Any]) -> Any:
        """The output of `module` for the whole pack, from its `arguments` for the whole pack."""
        outputs = [self._run_group(module, group, arguments) for group in self._groups]
        return self._pack(outputs)

    def _run_group(self, module: PackedForward, group: _Group, arguments: dict[str, Any]) -> Any:
        cache = StateCache(self._states, group.slots, is_fresh=group.is_fresh)
        batch = {name: self._unpack(name, value, group) for name, value in arguments.items()}
        batch[module.cache_name] = cache
        if module.is_stepwise and group.length > 1 and not group.is_fresh:
            steps = [
                module.original(**{name: _token(value, index) for name, value in batch.items()})
                for index in range(group.length)
            ]
            output = _join(steps)
        else:
            output = module.original(**batch)
        if group.is_kept:
            cache.write_back()
        return output

    def _unpack(self, name: str, value: Any, group: _Group) -> Any:
        """`[1, tokens, …]` -> `[sequences, length, …]`, in tuples too; what is no tensor stays as it is."""
        if isinstance(value, tuple):
            return tuple(self._unpack(name, part, group) for part in value)
        if not isinstance(value, Tensor):
            return value
        if value.shape[:2] != (1, self._num_tokens):
            raise NotImplementedError(
                f"a recurrent layer is given {name!r} of shape {tuple(value.shape)}, which is not one entry per token"
            )
        own = value[0] if group.tokens is None else value[0].index_select(0, group.tokens)
        return own.reshape(len(group.slots), group.length, *value.shape[2:])

    def _pack(self, outputs: Sequence[Any]) -> Any:
        """The groups' outputs `[sequences, length, …]` -> `[1, tokens, …]`, in tuples too."""
        first = outputs[0]
        if isinstance(first, tuple):
            return tuple(self._pack(parts) for parts in zip(*outputs, strict=True))
        if first is None:
            return None
        for group, output in zip(self._groups, outputs, strict=True):
            if not isinstance(output, Tensor) or output.shape[:2] != (len(group.slots), group.length):
                raise NotImplementedError("a recurrent layer returns something else than one entry per token")
        if self._groups[0].tokens is None:
            return first.reshape(1, self._num_tokens, *first.shape[2:])
        packed = first.new_empty(self._num_tokens, *first.shape[2:])
        for group, output in zip(self._groups, outputs, strict=True):
            packed.index_copy_(0, group.tokens, output.flatten(0, 1))
        return packed.unsqueeze(0)


def _group(
    length: int,
    is_fresh: bool,
    is_kept: bool,
    members: Sequence[tuple[int, int]],
    is_alone: bool,
    device: torch.device,
) -> _Group:
    slots = torch.tensor([slot for _, slot in members], device=device)
    tokens = None
    if not is_alone:
        tokens = torch.tensor([token for start, _ in members for token in range(start, start + length)], device=device)
    return _Group(tokens, slots, length, is_fresh, is_kept)


def _token(value: Any, index: int) -> Any:
    """One token of a batch of several, `[sequences, 1, …]`."""
    if isinstance(value, tuple):
        return tuple(_token(part, index) for part in value)
    return value[:, index : index + 1] if isinstance(value, Tensor) else value


def _join(steps: Sequence[Any]) -> Any:
    """The outputs of single tokens as that of all of them."""
    if isinstance(steps[0], tuple):
        return tuple(_join(parts) for parts in zip(*steps, strict=True))
    return None if steps[0] is None else torch.cat(list(steps), dim=1)


class PackedForward:
    """Takes the place of a recurrent module's `forward`; without a `recurrent_step` it calls the module's own.

    `cache_name`: the parameter by which the module takes its cache. `is_stepwise`: it continues from a state by single
    tokens only.
    """

    def __init__(self, original: Callable[..., Any], cache_name: str, *, is_stepwise: bool) -> None:
        self.original = original
        self.cache_name = cache_name
        self.is_stepwise = is_stepwise
        self._names = tuple(inspect.signature(original).parameters)

    def __call__(self, *values: Any, **named: Any) -> Any:
        """See `torch.nn.Module.forward`."""
        step = _current.get()
        if step is None:
            return self.original(*values, **named)
        return step.run(self, dict(zip(self._names, values, strict=False)) | named)


_current: Current[RecurrentStep] = Current("tiller_recurrent_step")


def recurrent_step(step: RecurrentStep) -> AbstractContextManager[RecurrentStep]:
    """Make `step` the current step of all recurrent modules; does not nest."""
    return _current.set_to(step)
