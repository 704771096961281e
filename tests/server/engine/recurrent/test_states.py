"""The cache of states against transformers' own, and the states in their slots."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from transformers.cache_utils import LinearAttentionLayer

from server.engine.recurrent.states import RecurrentStates, StateCache, StateKey, StateLayout

CONV: StateKey = ("conv", 3, 1)
RECURRENT: StateKey = ("recurrent", 3, 1)
LAYOUT = StateLayout({CONV: ((5, 4), torch.float32), RECURRENT: ((2, 3), torch.bfloat16)})


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape)


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def test_the_bytes_of_a_state_are_those_of_its_tensors() -> None:
    assert LAYOUT.num_bytes == 5 * 4 * 4 + 2 * 3 * 2
    assert not StateLayout()
    assert StateLayout().num_bytes == 0


@pytest.mark.parametrize("lengths", [(1, 1, 1, 7, 2), (3, 1, 4), (9, 1, 1), (4, 4)])
def test_updates_give_what_transformers_cache_gives(lengths: tuple[int, ...]) -> None:
    """A sequence alone in transformers' cache, and beside another one in ours; chunk after chunk."""
    layer = LinearAttentionLayer(number_of_states=2)
    states = RecurrentStates(LAYOUT, 6, torch.device("cpu"))
    slots = torch.tensor([4, 2])
    for number, length in enumerate(lengths):
        cache = StateCache(states, slots, is_fresh=number == 0)
        inputs, state = random(2, 5, length), random(2, 2, 3)
        found = cache.update_conv_state(inputs, 3, state_idx=1, conv_kernel_size=4)
        expected = layer.update_conv_state(inputs[:1], 1, conv_kernel_size=4)
        torch.testing.assert_close(found[:1], expected, atol=0, rtol=0)
        cache.update_recurrent_state(state, 3, state_idx=1)
        layer.update_recurrent_state(state[:1].bfloat16(), 1)
        cache.write_back()
        torch.testing.assert_close(states.tensors[CONV][4:5], layer.conv_states[1], atol=0, rtol=0)
        torch.testing.assert_close(states.tensors[RECURRENT][4:5], layer.recurrent_states[1], atol=0, rtol=0)
    assert not states.tensors[CONV][[0, 1, 3, 5]].any()


def test_a_sequence_that_begins_has_no_state_whatever_its_slot_held() -> None:
    states = RecurrentStates(LAYOUT, 2, torch.device("cpu"))
    states.tensors[CONV].fill_(7.0)
    fresh = StateCache(states, torch.tensor([0]), is_fresh=True)
    assert fresh.get_conv_state(3, 1) is None
    assert fresh.get_recurrent_state(3, 1) is None
    assert not fresh.has_previous_state(3, 1)
    earlier = StateCache(states, torch.tensor([0]), is_fresh=False)
    assert earlier.has_previous_state(3, 1)
    assert torch.equal(earlier.get_conv_state(3, 1), states.tensors[CONV][:1])  # type: ignore[arg-type]


def test_changes_in_place_reach_the_slots_only_when_written_back() -> None:
    states = RecurrentStates(LAYOUT, 3, torch.device("cpu"))
    cache = StateCache(states, torch.tensor([1, 2]), is_fresh=False)
    state = cache.get_recurrent_state(3, 1)
    assert state is not None
    state.add_(1.0)
    assert not states.tensors[RECURRENT].any()
    cache.write_back()
    assert states.tensors[RECURRENT].sum(dim=(1, 2)).tolist() == [0.0, 6.0, 6.0]


def test_copies_are_made_in_order() -> None:
    states = RecurrentStates(LAYOUT, 3, torch.device("cpu"))
    states.tensors[CONV][0].fill_(1.0)
    states.tensors[CONV][1].fill_(2.0)
    states.copy([(0, 2), (1, 0), (2, 1)])
    assert states.tensors[CONV][:, 0, 0].tolist() == [2.0, 1.0, 1.0]
