"""A plain model as training sees it: equal to full passes without a cache, for every family and way to steer."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Sequence
from itertools import product

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from server.demo import MODEL_DIR
from server.text import load_text
from tests.families import CONFIGS, HIDDEN, LAYERS, VOCABULARY, build
from tests.reference import Steer, activations, steered_logits
from vectors.data import Message
from vectors.errors import CannotSteer, InvalidMethod
from vectors.plain.model_view import MAX_ROWS, PlainModelView
from vectors.training.model_view import Continuations, Steering
from vectors.vector import SteeringVector
from vectors.vocabulary import OPERATIONS, POSITIONS, NamedPositions, Operation, Site


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(MODEL_DIR)


@pytest.fixture(params=CONFIGS)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return build(request.param)


@pytest.fixture
def view(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Iterator[PlainModelView]:
    view = PlainModelView(model, tokenizer)
    yield view
    view.close()


def some_tokens(length: int, seed: int) -> tuple[int, ...]:
    return tuple(random.Random(seed).choices(range(VOCABULARY), k=length))


def entry(
    seed: int, site: Site, layer: int, operation: Operation = "add", positions: NamedPositions = "response"
) -> tuple[Steering, Steer]:
    """A random direction, as training and as the reference steer with it."""
    direction = torch.randn(HIDDEN, generator=torch.Generator().manual_seed(seed))
    scale = random.Random(seed).choice((-1.5, 0.5, 2.0))
    low = -0.1 if operation == "cap" else None
    vector = SteeringVector({layer: direction}, site=site, operation=operation, positions=positions, min=low)
    return Steering(vector, scale), Steer(direction, layer, site, scale, positions, operation, low=low)


Way = tuple[tuple[Steering, ...], list[Steer]]


def all_ways(sites: Sequence[Site]) -> list[Way]:
    """The plain model; every site, operation and positions alone; and all of them in pairs at one place."""
    alone = [
        [entry(number, site, number % LAYERS, operation, positions)]
        for number, (site, operation, positions) in enumerate(product(sites, OPERATIONS, POSITIONS))
    ]
    together = [
        [entry(seed, sites[0], 1, one, "all"), entry(seed + 1, sites[0], 1, other, positions)]
        for seed, (one, other, positions) in enumerate(product(OPERATIONS, OPERATIONS, POSITIONS))
    ]
    entries = [[], *alone, *together]
    return [(tuple(steering for steering, _ in own), [steer for _, steer in own]) for own in entries]


def assert_next_tokens_are_those_of_a_full_pass(
    model: PreTrainedModel, view: PlainModelView, prompts: Sequence[tuple[int, ...]], ways: Sequence[Way]
) -> None:
    token_ids = [tuple(range(5 * index, 5 * index + 1 + index)) for index in range(len(prompts))]
    found = dict(view.next_token_logits(prompts, token_ids, [steering for steering, _ in ways]))
    assert list(found) == list(range(len(prompts)))
    for index, prompt in enumerate(prompts):
        assert found[index].dtype == torch.float32
        for row, (_, steers) in zip(found[index], ways, strict=True):
            expected = steered_logits(model, prompt, steers)[-1][list(token_ids[index])]
            torch.testing.assert_close(row, expected, atol=1e-4, rtol=1e-4)


def test_answers_are_next_tokens_and_activations(tokenizer: PreTrainedTokenizerBase) -> None:
    with contextlib.closing(PlainModelView(build("llama"), tokenizer)) as view:
        prompts, token_ids = [some_tokens(length, length) for length in (1, 7)], [(3,), (5, 4)]
        logits = dict(view.next_token_logits(prompts, token_ids, [()]))
        activations = dict(view.activations(prompts, view.sites))
        found = dict(view.answers(prompts, token_ids, view.sites))
        assert list(found) == [0, 1]
        for index, (own_logits, own) in found.items():
            torch.testing.assert_close(own_logits, logits[index][0], atol=1e-4, rtol=1e-4)
            assert own.keys() == activations[index].keys()
            for site, rows in own.items():
                torch.testing.assert_close(rows, activations[index][site])


def test_next_tokens_are_as_likely_as_in_a_full_pass(tokenizer: PreTrainedTokenizerBase) -> None:
    model = build("llama")
    with contextlib.closing(PlainModelView(model, tokenizer)) as view:
        prompts = [some_tokens(length, length) for length in (1, 2, 7)]
        assert_next_tokens_are_those_of_a_full_pass(model, view, prompts, all_ways(view.sites))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_every_family_is_asked_exactly(model: PreTrainedModel, view: PlainModelView) -> None:
    """Beyond the sliding windows of those that have them."""
    ways = random.Random(1).sample(all_ways(view.sites), 8)
    assert_next_tokens_are_those_of_a_full_pass(model, view, [some_tokens(12, 0)], [((), []), *ways])


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_continuations_are_as_likely_as_in_a_full_pass(model: PreTrainedModel, view: PlainModelView) -> None:
    ways = random.Random(0).sample(all_ways(view.sites), 4)
    prompt, choices = some_tokens(9, 1), tuple(some_tokens(length, length) for length in (1, 4))
    queries = [Continuations(prompt, choices, steering) for steering, _ in ways]
    for index, found in view.continuation_logprobs(queries):
        for choice, logprobs in zip(choices, found, strict=True):
            rows = steered_logits(model, (*prompt, *choice), ways[index][1], len(prompt)).log_softmax(-1)
            expected = [float(rows[len(prompt) - 1 + place, token]) for place, token in enumerate(choice)]
            assert logprobs == pytest.approx(expected, abs=1e-4, rel=1e-4)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_activations_are_those_of_the_last_token(model: PreTrainedModel, view: PlainModelView) -> None:
    prompts = [some_tokens(length, length) for length in (1, 5, 11)]
    for index, found in view.activations(prompts, view.sites):
        for site in view.sites:
            expected = [activations(model, prompts[index], site, layer)[-1] for layer in range(LAYERS)]
            torch.testing.assert_close(found[site], torch.stack(expected))


def plain_view(tokenizer: PreTrainedTokenizerBase) -> PlainModelView:
    return PlainModelView(build("llama"), tokenizer)


def test_more_steerings_than_run_side_by_side_come_back_where_they_belong(tokenizer: PreTrainedTokenizerBase) -> None:
    model = build("llama")
    ways = [entry(number, "residual", number % LAYERS) for number in range(2 * MAX_ROWS + 3)]
    prompt = some_tokens(8, 0)
    view = PlainModelView(model, tokenizer)
    ((_, found),) = view.next_token_logits([prompt], [(3, 4)], [(steering,) for steering, _ in ways])
    view.close()
    for number in (0, MAX_ROWS - 1, MAX_ROWS, 2 * MAX_ROWS, 2 * MAX_ROWS + 2):
        expected = steered_logits(model, prompt, [ways[number][1]])[-1][[3, 4]]
        torch.testing.assert_close(found[number], expected, atol=1e-4, rtol=1e-4)


def test_text_becomes_the_tokens_that_the_server_reads(tokenizer: PreTrainedTokenizerBase) -> None:
    server, view = load_text(MODEL_DIR), plain_view(tokenizer)
    assert view.has_chat_template
    for text in ("", "Do you like music?", " é\n\tx" * 50, "<|im_start|>user"):
        assert list(view.encode(text)) == server.encode(text)
    turns = [Message("system", "Be brief."), Message("user", "Name a town.")]
    rendered = server.render_chat([{"role": turn.role, "content": turn.content} for turn in turns])
    assert list(view.encode_chat(turns, "A")) == server.encode(rendered + "A", add_special_tokens=False)


def test_nothing_is_left_on_the_model(tokenizer: PreTrainedTokenizerBase) -> None:
    model, prompt = build("llama"), some_tokens(6, 0)
    before = steered_logits(model, prompt)
    view = PlainModelView(model, tokenizer)
    list(view.next_token_logits([prompt], [(1,)], [(entry(0, "mlp", 1)[0],)]))
    assert torch.equal(steered_logits(model, prompt), before)
    view.close()
    assert not any(module._forward_hooks for module in model.modules())


def test_a_failing_pass_leaves_the_view_as_it_was(tokenizer: PreTrainedTokenizerBase) -> None:
    view, prompt = plain_view(tokenizer), some_tokens(6, 0)
    with pytest.raises(IndexError):
        list(view.activations([(VOCABULARY + 1,)], ["residual"]))
    ((_, found),) = view.activations([prompt], ["residual"])
    assert found["residual"].shape == (LAYERS, HIDDEN)


def test_a_model_in_training_mode_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(InvalidMethod, match=r"call model\.eval\(\)"):
        PlainModelView(build("llama").train(), tokenizer)


def test_a_vector_of_another_model_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    other = Steering(SteeringVector({1: torch.ones(HIDDEN + 1)}), 1.0)
    with pytest.raises(CannotSteer, match="hidden size"):
        list(plain_view(tokenizer).next_token_logits([(1,)], [(1,)], [(other,)]))


def test_a_model_is_called_by_its_folder_or_its_id(tokenizer: PreTrainedTokenizerBase) -> None:
    demo = AutoModelForCausalLM.from_pretrained(MODEL_DIR)
    assert PlainModelView(demo, tokenizer).model_id == "model"
    demo.config._name_or_path = "someone/model-1B"
    assert PlainModelView(demo, tokenizer).model_id == "someone/model-1B"
    assert plain_view(tokenizer).model_id == "LlamaForCausalLM"
