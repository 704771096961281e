"""`steer` on plain transformers models: the engine's tokens, the reference's numbers, a model that is left as it was.

The reference (`tests/reference.py`) writes the semantics out again, on full passes without a KV cache.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import itertools
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache

from server.engine.request import EngineRequest, Generate
from tests.families import HIDDEN, build
from tests.reference import Steer, greedy, steered_logits
from tests.server.engine.driving import GREEDY, engine_of, loaded, plan_of, prompt_of, random_direction, run, tokens_of
from vectors.errors import CannotSteer, InvalidLayers
from vectors.plain.steering import steer
from vectors.vector import SteeringVector
from vectors.vocabulary import OPERATIONS, POSITIONS

NUM_TOKENS = 5
FAMILIES = ("llama", "mistral", "gemma2", "gpt_neox", "olmo2", "mixtral")
PROMPT = prompt_of(9)
IDS = torch.tensor([PROMPT])

pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning")  # `generate` warns of options that do not go together


@pytest.fixture(scope="module")
def model() -> Any:
    return build("llama")


@pytest.fixture(scope="module")
def alone() -> Any:
    """The same weights, where nobody steers."""
    return build("llama")


def vector_of(steer: Steer) -> SteeringVector:
    """What a user would hold for the reference's entry."""
    return SteeringVector(
        {steer.layer: steer.direction},
        site=steer.site,  # type: ignore[arg-type]
        default_scale=steer.scale,
        positions=steer.positions,  # type: ignore[arg-type]
        operation=steer.operation,  # type: ignore[arg-type]
        parts=steer.parts,  # type: ignore[arg-type]
        min=steer.low,
        max=steer.high,
    )


@contextlib.contextmanager
def steered(model: Any, steers: Sequence[Steer]) -> Iterator[None]:
    """A context for each entry, one within the other."""
    with ExitStack() as contexts:
        for one in steers:
            contexts.enter_context(steer(model, vector_of(one), preserve_norm=one.preserve_norm))
        yield


def generated(model: Any, prompts: Sequence[Sequence[int]] = (PROMPT,), **options: Any) -> list[list[int]]:
    """The tokens that `generate` adds to prompts that are padded on the left."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    asked = {"max_new_tokens": NUM_TOKENS, "do_sample": False, "pad_token_id": 0} | options
    tokens: list[list[int]] = model.generate(ids, attention_mask=mask, **asked)[:, width:].tolist()
    return tokens


def expected(model: Any, steers: Sequence[Steer], prompt: Sequence[int] = PROMPT) -> list[int]:
    """The reference's greedy tokens."""
    return greedy(model, prompt, NUM_TOKENS, steers)[0]


def entry(positions: str = "response", seed: int = 1, **changes: Any) -> Steer:
    """A strong vector at the middle block."""
    return Steer(random_direction(seed), 1, positions=positions, **changes)


@pytest.mark.parametrize("family", FAMILIES)
def test_generates_the_engines_tokens(family: str) -> None:
    """Every operation, site of the model and value of positions."""
    served = loaded(family)
    cases = [
        Steer(
            random_direction(number),
            number % 3,
            site,
            1.5,
            positions,
            operation,
            preserve_norm=number % 2 == 0,
            low=0.5 if operation == "cap" else None,
        )
        for number, (site, operation, positions) in enumerate(
            itertools.product(served.info.sites, OPERATIONS, POSITIONS)
        )
    ]
    requests = [
        EngineRequest(str(number), PROMPT, Generate(NUM_TOKENS, GREEDY), plan_of(one))
        for number, one in enumerate(cases)
    ]
    with closing(engine_of(served)) as engine:
        answers = [tokens_of(events) for events in run(engine, requests).values()]
    model = build(family)
    (unsteered,) = generated(model)
    for one, answer in zip(cases, answers, strict=True):
        with steered(model, [one]):
            assert generated(model) == [answer], one
    assert generated(model) == [unsteered]
    assert sum(answer != unsteered for answer in answers) > len(cases) / 3


WAYS: dict[str, Callable[[], dict[str, Any]]] = {
    "without a cache": lambda: {"use_cache": False},
    "in chunks": lambda: {"prefill_chunk_size": 4},
    "with a static cache": lambda: {"cache_implementation": "static"},
    "with an assistant": lambda: {"assistant_model": build("llama", seed=1)},
    "with drafts from the prompt": lambda: {"prompt_lookup_num_tokens": 3},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("positions", POSITIONS)
def test_every_way_to_generate_steers_the_same_tokens(model: Any, alone: Any, way: str, positions: str) -> None:
    steers = [entry(positions), entry(positions, 2, operation="ablate", site="mlp")]
    with steered(model, steers):
        assert generated(model, **WAYS[way]()) == [expected(alone, steers)]


@pytest.mark.parametrize("positions", POSITIONS)
def test_a_padded_batch_is_steered_row_by_row_and_every_call_begins_anew(model: Any, positions: str) -> None:
    steers, prompts = [entry(positions, preserve_norm=True)], [prompt_of(length) for length in (2, 9, 5)]
    answers = [expected(model, steers, prompt) for prompt in prompts]
    with steered(model, steers):
        assert generated(model, prompts) == answers
        assert generated(model, prompts[:1]) == answers[:1]


@pytest.mark.parametrize("positions", POSITIONS)
def test_beams_are_scored_under_steering(model: Any, positions: str) -> None:
    steers = [entry(positions)]
    with steered(model, steers):
        found = model.generate(
            IDS, max_new_tokens=4, num_beams=3, num_return_sequences=3, pad_token_id=0, do_sample=False,
            return_dict_in_generate=True, output_scores=True,
        )  # fmt: skip
    for tokens, score in zip(found.sequences.tolist(), found.sequences_scores.tolist(), strict=True):
        rows = torch.log_softmax(steered_logits(model, tokens, steers, len(PROMPT)), -1)[len(PROMPT) - 1 : -1]
        chosen = rows.gather(1, torch.tensor(tokens[len(PROMPT) :]).unsqueeze(1))
        assert score == pytest.approx(float(chosen.mean()), abs=1e-4)


@pytest.mark.parametrize("positions", POSITIONS)
def test_a_pass_is_a_prompt_and_those_that_go_on_from_its_cache_are_the_response(model: Any, positions: str) -> None:
    steers, tokens = [entry(positions, preserve_norm=True)], (*PROMPT, 5, 6, 7, 8)
    whole = steered_logits(model, tokens, steers, len(PROMPT))
    prefix = whole[: len(PROMPT)]
    with steered(model, steers), torch.no_grad():
        generated(model, [prompt_of(3)])
        first = model(IDS)
        then = model(torch.tensor([[5, 6, 7]]), past_key_values=first.past_key_values)
        last = model(torch.tensor([[8]]), past_key_values=then.past_key_values)
        again = model.model(IDS).last_hidden_state  # the decoder by itself
    torch.testing.assert_close(first.logits[0], prefix, atol=1e-4, rtol=0)
    found = torch.cat([first.logits[0], then.logits[0], last.logits[0]])
    torch.testing.assert_close(found, whole, atol=1e-4, rtol=0)
    torch.testing.assert_close(model.lm_head(again)[0], prefix, atol=1e-4, rtol=0)


@pytest.mark.parametrize("positions", POSITIONS)
def test_a_cache_that_was_filled_before_holds_the_beginning_of_the_prompt(model: Any, positions: str) -> None:
    with torch.no_grad():
        cache = model(IDS[:, :4], past_key_values=DynamicCache(config=model.config)).past_key_values
    direction = random_direction(1)
    with steer(model, SteeringVector({1: direction}), positions=positions), torch.no_grad():  # type: ignore[arg-type]
        found = model(IDS[:, 4:], past_key_values=cache).logits[0]

    # what was computed before is unsteered: as if the vector began at the fifth token
    def add_from_the_fifth(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        changed = output.clone()
        changed[:, 8 if positions == "response" else 4 :] += direction
        return changed

    handle = model.model.layers[1].register_forward_hook(add_from_the_fifth)
    with torch.no_grad():
        whole = model(IDS).logits[0]
    handle.remove()
    torch.testing.assert_close(found, whole[4:], atol=1e-4, rtol=0)


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_row_ends_with_its_last_attended_token(model: Any, positions: str, side: str) -> None:
    steers, prompts = [entry(positions)], [prompt_of(length) for length in (3, 8)]
    padding = [(0, 5), (0, 0)] if side == "right" else [(5, 0), (0, 0)]
    ids = torch.tensor(
        [[0] * left + list(row) + [0] * right for row, (left, right) in zip(prompts, padding, strict=True)]
    )
    mask = torch.tensor([[0] * a + [1] * len(row) + [0] * b for row, (a, b) in zip(prompts, padding, strict=True)])
    places = (mask.cumsum(-1) - 1).clamp_min(0)
    with steered(model, steers), torch.no_grad():
        logits = model(ids, attention_mask=mask, position_ids=places).logits
    for row, prompt in enumerate(prompts):
        found = logits[row][mask[row] == 1]
        torch.testing.assert_close(found, steered_logits(model, prompt, steers), atol=1e-4, rtol=0)


def test_several_vectors_mean_what_the_entries_of_a_request_do(model: Any) -> None:
    """One within another: sums come first wherever they are listed, and the norm is restored once."""
    steers = [
        entry("all", 1, operation="ablate"),
        entry("all", 2),
        entry("response", 3, operation="clamp", scale=0.7, preserve_norm=True),
        entry("prompt", 4, site="attention"),
        entry("all", 5, operation="clamp", scale=0.0),
        entry("all", 6, scale=0.0, preserve_norm=True),
    ]
    with steered(model, steers):
        nested = generated(model)
    assert nested == [expected(model, steers)]
    both = [entry("all", 1, operation="ablate", scale=1.3), entry("all", 2, scale=1.3)]
    with steer(model, [vector_of(one) for one in steers[:2]], scale=1.3):
        together = generated(model)
    assert together == [expected(model, both)]


def test_what_is_asked_goes_over_the_vectors_own(model: Any) -> None:
    direction = random_direction(1)
    vector = SteeringVector({2: direction}, default_scale=9.0)
    asked: dict[str, Any] = {"scale": 0.8, "positions": "all", "operation": "ablate", "preserve_norm": True}
    for layers in ("0-1", [0, 1]):
        with steer(model, vector, layers=layers, **asked):
            found = generated(model)
        assert found == [expected(model, [Steer(direction, layer, **asked) for layer in (0, 1)])]


def test_all_of_the_response_is_steered_whatever_the_vectors_parts(model: Any) -> None:
    with steer(model, vector_of(entry(parts=("tool_calls",)))):
        found = generated(model)
    assert found == [expected(model, [entry()])]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_pass_is_computed_in_float32_and_cast_once(dtype: torch.dtype) -> None:
    steers = [entry("all"), entry("all", 2), entry("all", 3, operation="clamp", preserve_norm=True)]
    model = build("llama").to(dtype)  # type: ignore[arg-type]
    with steered(model, steers), torch.no_grad():
        found = model(IDS, use_cache=False).logits[0].float()
    torch.testing.assert_close(
        found, steered_logits(model, PROMPT, steers), atol=1e-5 if dtype == torch.float32 else 0.05, rtol=0
    )


def test_gradients_pass() -> None:
    model = build("llama")
    with steer(
        model,
        [vector_of(entry("response", operation=operation, low=0.5)) for operation in OPERATIONS],
        preserve_norm=True,
    ):
        model(IDS).logits.sum().backward()
    gradient = model.model.layers[0].mlp.down_proj.weight.grad
    assert bool(gradient.isfinite().all() & (gradient != 0).any())


# The model is left as it was.


def is_untouched(model: Any) -> bool:
    """True when nothing of steering is on the model."""
    modules = list(model.modules())
    return "generate" not in vars(model) and not any(
        module._forward_hooks or module._forward_pre_hooks or module._forward_hooks_always_called for module in modules
    )


def test_nothing_stays_after_an_error_inside_or_at_the_door(model: Any, alone: Any) -> None:
    good, wide = vector_of(entry()), SteeringVector({1: torch.ones(HIDDEN + 1)})
    for refused, asked in (
        ([good, wide], {}),
        (good, {"layers": [7]}),
        (SteeringVector({0: torch.ones(HIDDEN), 1: torch.ones(HIDDEN)}), {"layers": [2]}),
        (good, {"scale": 1e39}),
        (good, {"operation": "rotate"}),
        (good, {"positions": "anywhere"}),
        (good, {"positions": ""}),
    ):
        with pytest.raises(CannotSteer), steer(model, refused, **asked):
            pass
        assert is_untouched(model)
    with pytest.raises(InvalidLayers), steer(model, good, layers="2-1"):
        pass
    with contextlib.suppress(ZeroDivisionError), steer(model, good):
        assert not is_untouched(model)
        raise ZeroDivisionError
    assert is_untouched(model)
    with steer(model, good):
        with pytest.raises(CannotSteer), steer(model, wide):
            pass
        with pytest.raises(IndexError):
            model(torch.tensor([[10_000]]))  # a pass that fails is over
        assert generated(model) == [expected(alone, [entry()])]
    assert is_untouched(model)


def test_an_interrupted_pass_is_over(model: Any) -> None:
    def interrupt(module: nn.Module, args: Any) -> None:
        raise KeyboardInterrupt

    with steer(model, vector_of(entry("all"))), torch.no_grad():
        handle = model.model.layers[1].register_forward_pre_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            model(IDS)
        handle.remove()
        found = model(IDS).logits[0]
    torch.testing.assert_close(found, steered_logits(model, PROMPT, [entry("all")]), atol=1e-4, rtol=0)


def test_contexts_may_end_in_any_order(model: Any, alone: Any) -> None:
    one, other = entry(), entry("all", 2)
    first, second = steer(model, vector_of(one)), steer(model, vector_of(other))
    first.__enter__()
    second.__enter__()
    assert generated(model) == [expected(alone, [one, other])]
    first.__exit__(None, None, None)
    assert generated(model) == [expected(alone, [other])]
    second.__exit__(None, None, None)
    assert is_untouched(model)


# A steered model belongs to whoever steers it.


def failure_of(call: Callable[[], object]) -> list[BaseException]:
    """What `call` raises on a thread of its own."""
    raised: list[BaseException] = []

    def body() -> None:
        try:
            call()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    return raised


def test_other_threads_are_refused_and_leave_the_steering_alone(model: Any, alone: Any) -> None:
    def enter() -> None:
        with steer(model, vector_of(entry(seed=2))):
            pass

    with steer(model, vector_of(entry())):
        for call in (lambda: model(IDS), lambda: generated(model), enter):
            (error,) = failure_of(call)
            assert isinstance(error, RuntimeError)
            assert "another thread or task" in str(error)
        assert generated(model) == [expected(alone, [entry()])]
    assert failure_of(lambda: model(IDS)) == failure_of(enter) == []


def test_a_task_may_run_what_it_steers_on_a_thread_and_no_other_task_may() -> None:
    model = build("llama")

    async def run_tasks() -> tuple[list[list[int]], BaseException | None]:
        entered, is_over = asyncio.Event(), asyncio.Event()

        async def stranger() -> None:
            await entered.wait()
            try:
                model(IDS)
            finally:
                is_over.set()

        task = asyncio.create_task(stranger())
        with steer(model, vector_of(entry())):
            entered.set()
            await is_over.wait()
            answer = await asyncio.to_thread(generated, model)
        await asyncio.wait([task])
        return answer, task.exception()

    answer, error = asyncio.run(run_tasks())
    assert answer == [expected(model, [entry()])]
    assert isinstance(error, RuntimeError)


def test_what_was_started_within_a_context_does_not_keep_the_model() -> None:
    model = build("llama")
    with steer(model, vector_of(entry())):
        context = contextvars.copy_context()  # as a task has that lives longer
    kept = weakref.ref(model)
    del model
    gc.collect()
    assert kept() is None
    assert context.run(lambda: True)


def test_a_second_pass_at_the_same_time_is_refused_and_the_first_goes_on(model: Any) -> None:
    raised: list[BaseException] = []

    def run_another(module: nn.Module, args: Any) -> None:
        handle.remove()
        context = contextvars.copy_context()
        raised.extend(failure_of(lambda: context.run(model, IDS)))

    with steer(model, vector_of(entry("all"))), torch.no_grad():
        handle = model.model.layers[0].register_forward_pre_hook(run_another)
        found = model(IDS).logits[0]
    assert ["one pass at a time" in str(error) for error in raised] == [True]
    torch.testing.assert_close(found, steered_logits(model, PROMPT, [entry("all")]), atol=1e-4, rtol=0)


def test_a_pass_that_has_just_begun_is_not_overtaken(model: Any) -> None:
    raised: list[BaseException] = []

    class Cache(DynamicCache):
        """Asked how long it is before anything is computed."""

        def get_seq_length(self, *args: Any, **kwargs: Any) -> int:
            if not raised:
                context = contextvars.copy_context()
                raised.extend(failure_of(lambda: context.run(model, IDS)) or [AssertionError("it ran")])
            return super().get_seq_length(*args, **kwargs)

    with steer(model, vector_of(entry("all"))), torch.no_grad():
        found = model(IDS, past_key_values=Cache()).logits[0]
    assert ["one pass at a time" in str(error) for error in raised] == [True]
    torch.testing.assert_close(found, steered_logits(model, PROMPT, [entry("all")]), atol=1e-4, rtol=0)


def test_what_would_not_be_steered_is_refused(model: Any) -> None:
    vector = vector_of(entry())
    with steer(model, vector):
        with pytest.raises(RuntimeError, match="whole decoder"):
            model.model.layers[1](
                torch.zeros(1, 1, HIDDEN), position_embeddings=(torch.ones(1, 1, 8), torch.zeros(1, 1, 8))
            )
        with pytest.raises(RuntimeError, match="same object"), steer(model.model, vector):
            pass
    compiled = build("llama")
    compiled.compile(backend="eager")
    with pytest.raises(RuntimeError, match="compiled"), steer(compiled, vector):
        pass
    with pytest.raises(RuntimeError, match="compiled"), steer(torch.compile(model, backend="eager"), vector):  # type: ignore[arg-type]
        pass
    assert is_untouched(model)
