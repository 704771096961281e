"""The shape of a step's cost, counted in tensor operations: flat in the number of vectors, no copies of the KV."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from server.engine import cache
from server.engine.engine import BatchingEngine
from server.engine.request import EngineRequest, Generate
from server.steering.plan import SteeringPlan
from tests.reference import Steer
from tests.server.engine.driving import GREEDY, engine_of, loaded, plan_of, prompt_of, random_direction

NUM_REQUESTS = 32


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts every tensor operation by name and notes the largest tensor that one makes anew."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts: Counter[str] = Counter()
        self.largest_new = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.counts[str(func)] += 1
        known = {
            leaf.untyped_storage().data_ptr() for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)
        }
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.untyped_storage().data_ptr() not in known:
                self.largest_new = max(self.largest_new, leaf.numel())
        return result


def decode_step(engine: BatchingEngine, plans: Sequence[SteeringPlan], length: int = 8) -> Operations:
    """The operations of one decode step of requests with these plans."""
    for index, plan in enumerate(plans):
        engine.submit(EngineRequest(str(index), prompt_of(length), Generate(20, GREEDY), plan), lambda output: None)
    while engine.stats().total_generated_tokens < len(plans):
        engine.step()
    engine.step()
    operations = Operations()
    with operations:
        engine.step()
    while engine.step():
        pass
    return operations


def plans(num_different: int) -> list[SteeringPlan]:
    different = [
        plan_of(*(Steer(random_direction(seed), layer, scale=1 + seed / 7) for layer in range(3)))
        for seed in range(num_different)
    ]
    return [different[index % num_different] for index in range(NUM_REQUESTS)]


def test_a_step_costs_the_same_for_one_vector_and_for_thirty_two() -> None:
    engine = engine_of(loaded(), max_batch_tokens=512, num_pages=1024, prefix_cache=False)
    one, many = decode_step(engine, plans(1)), decode_step(engine, plans(32))
    assert one.counts == many.counts
    engine.close()


def test_a_step_costs_what_it_did_before_once_a_wide_plan_has_gone() -> None:
    """Each change of components that some plan has costs every step, so what nobody needs any more must go."""
    engine = engine_of(loaded(), max_batch_tokens=512, num_pages=1024, prefix_cache=False)
    narrow = plan_of(Steer(random_direction(1), 1, operation="ablate"))
    wide = plan_of(*(Steer(random_direction(seed), 1, operation="ablate") for seed in range(2, 18)))

    def next_step() -> int:
        operations = Operations()
        with operations:
            engine.step()
        return sum(operations.counts.values())

    engine.submit(EngineRequest("narrow", prompt_of(5), Generate(40, GREEDY), narrow), lambda output: None)
    engine.step()
    before = next_step()
    engine.submit(EngineRequest("wide", prompt_of(5), Generate(3, GREEDY), wide), lambda output: None)
    engine.step()
    beside = next_step()
    while engine.stats().num_running > 1:
        engine.step()
    assert before == next_step() < beside
    while engine.step():
        pass
    engine.close()


def test_steering_costs_one_lookup_and_one_addition_a_layer() -> None:
    engine = engine_of(loaded(), max_batch_tokens=512, num_pages=1024, prefix_cache=False)
    unsteered, steered = decode_step(engine, [SteeringPlan()] * 32), decode_step(engine, plans(32))
    added = steered.counts - unsteered.counts
    per_layer = {"aten.index_select.default": 3, "aten.add_.Tensor": 3}
    assert {name: added[name] for name in per_layer} == per_layer
    assert sum(added.values()) <= 4 * 3 + 4, added  # and the views of both, and the row numbers' way to the device
    assert not unsteered.counts - steered.counts
    engine.close()


def test_a_decode_step_copies_no_kv() -> None:
    engine = engine_of(loaded(), num_pages=256)
    length = 220
    operations = decode_step(engine, [SteeringPlan()], length=length)
    kv_of_one_layer = 2 * 8 * length  # heads x dim x tokens
    assert operations.largest_new < kv_of_one_layer
    engine.close()


def calls_in(step: Callable[[], object], names: Sequence[str]) -> int:
    """The calls of functions of the prefix cache with these names."""
    count = 0

    def note(frame: FrameType, event: str, argument: object) -> None:
        nonlocal count
        code = frame.f_code
        count += event == "call" and code.co_filename == cache.__file__ and code.co_name in names

    sys.setprofile(note)
    try:
        step()
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize("family", ["llama", "qwen3_next"])
def test_a_prompt_is_hashed_for_all_requests_that_have_it_together(family: str) -> None:
    """Not once for each of the ten, but once more where nobody knew of the others."""
    engine = engine_of(loaded(family), num_pages=200)
    prompts = [prompt_of(240), prompt_of(200, 1)]
    for number in range(20):
        engine.submit(EngineRequest(str(number), prompts[number % 2], Generate(1, GREEDY)), lambda output: None)

    def steps() -> None:
        while engine.step():
            pass

    assert calls_in(steps, ["page_key"]) < 2.5 * (240 + 200) / 4
    engine.close()


def test_waiting_for_a_state_costs_as_much_at_the_end_of_a_long_prompt_as_at_its_beginning() -> None:
    """The steps have room for two tokens more, so those that wait are looked at in each."""
    engine = engine_of(loaded("qwen3_next"), max_batch_tokens=18, num_pages=200)
    for number in range(12):
        engine.submit(EngineRequest(str(number), prompt_of(240), Generate(1, GREEDY)), lambda output: None)
    counts = [calls_in(engine.step, ["has", "page_key"]) for _ in range(14)]
    assert engine.stats().num_running == 1
    assert max(counts[8:]) <= max(counts[1:5]), counts
    engine.close()
