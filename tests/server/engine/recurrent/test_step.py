"""A recurrent module on a pack gives what it gives for each sequence alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from server.engine.recurrent.states import RecurrentStates, StateLayout
from server.engine.recurrent.step import PackedForward, RecurrentStep, Span, recurrent_step

DEVICE = torch.device("cpu")
LAYOUT = StateLayout({("recurrent", 0, 0): ((3,), torch.float32)})


class Decay(nn.Module):
    """`h = decay * h + x` for each token, from 1 for sequences that begin; with a tuple for its output.

    `forgets`: it ignores the state when it is given more than one token, as some modules of transformers do.
    """

    def __init__(self, *, forgets: bool = False) -> None:
        super().__init__()
        self.forgets = forgets

    def forward(self, hidden: Tensor, decay: tuple[Tensor, ...], cache: Any = None) -> tuple[Tensor, None]:
        state = None if cache is None else cache.get_recurrent_state(0)
        if state is None or (self.forgets and hidden.shape[1] > 1 and state is not None):
            state = torch.ones_like(hidden[:, 0])
        outputs = []
        for token in range(hidden.shape[1]):
            state = decay[0][:, token] * state + hidden[:, token]
            outputs.append(state)
        if cache is not None:
            cache.update_recurrent_state(state, 0)
        return torch.stack(outputs, dim=1), None


def packed(module: nn.Module, *, is_stepwise: bool = False) -> nn.Module:
    setattr(module, "forward", PackedForward(module.forward, "cache", is_stepwise=is_stepwise))  # noqa: B010
    return module


def alone(hidden: Tensor, decay: Tensor, state: Tensor | None) -> Tensor:
    state = torch.ones(3) if state is None else state
    outputs = []
    for x, factor in zip(hidden, decay, strict=True):
        state = factor * state + x
        outputs.append(state)
    return torch.stack(outputs)


PACKS = {
    "all decode": [Span(0, 1, 4, False), Span(1, 2, 0, False), Span(2, 3, 2, False)],
    "one sequence": [Span(0, 5, 3, True)],
    "decoding beside chunks": [
        Span(0, 1, 4, False),
        Span(1, 2, 0, True),
        Span(2, 5, 1, True),
        Span(5, 8, 2, False),
        Span(8, 10, 3, False),
    ],
    "branches": [Span(0, 1, 4, False), Span(1, 4, 2, False, True), Span(4, 6, 0, True, True)],
}


@pytest.mark.parametrize("spans", PACKS.values(), ids=PACKS)
@pytest.mark.parametrize("is_stepwise", [False, True])
def test_each_sequence_is_computed_as_if_alone(spans: list[Span], is_stepwise: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    states = RecurrentStates(LAYOUT, 5, DEVICE)
    (held,) = states.tensors.values()
    held.normal_(generator=generator)
    before = held.clone()
    num_tokens = spans[-1].end
    hidden = torch.randn(1, num_tokens, 3, generator=generator)
    decay = torch.rand(1, num_tokens, 3, generator=generator)
    module = packed(Decay(forgets=is_stepwise), is_stepwise=is_stepwise)
    with recurrent_step(RecurrentStep(states, spans, DEVICE)):
        output, nothing = module(hidden, (decay,), cache=None)
    assert nothing is None
    assert output.shape == hidden.shape
    after = before.clone()
    for span in spans:
        state = None if span.is_fresh else before[span.slot]
        if span.is_branching:
            for token in range(span.start, span.end):
                own = slice(token, token + 1)
                torch.testing.assert_close(output[0, own], alone(hidden[0, own], decay[0, own], state))
        else:
            own = slice(span.start, span.end)
            expected = alone(hidden[0, own], decay[0, own], state)
            torch.testing.assert_close(output[0, own], expected)
            after[span.slot] = expected[-1]
    torch.testing.assert_close(held, after)


def test_without_a_step_the_module_is_its_own() -> None:
    hidden, decay = torch.randn(2, 4, 3), torch.rand(2, 4, 3)
    assert torch.equal(packed(Decay())(hidden, (decay,))[0], Decay()(hidden, (decay,))[0])


def test_what_is_not_one_entry_per_token_is_refused() -> None:
    states = RecurrentStates(LAYOUT, 1, DEVICE)
    with recurrent_step(RecurrentStep(states, [Span(0, 4, 0, True)], DEVICE)):
        with pytest.raises(NotImplementedError, match="'decay' of shape"):
            packed(Decay())(torch.zeros(1, 4, 3), (torch.zeros(1, 5, 3),))
        with pytest.raises(AssertionError), recurrent_step(RecurrentStep(states, [Span(0, 1, 0, True)], DEVICE)):
            pass
