"""Training gives the numbers of a plain, slow reference: vectors, every cell of the search, the test at the end."""

from __future__ import annotations

import contextlib
import itertools
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from server.demo import MODEL_DIR
from server.demo.heldout import quiz_items
from server.engine.engine import BatchingEngine, EngineSettings
from server.engine.model import LoadedModel, load_model, prepare_model
from server.text import TextProcessor, load_text
from server.training.engine_view import MAX_BRANCHES, EngineView
from tests.reference import Steer, steered_logits
from tests.server.api.serving import byte_tokenizer
from tests.shared_files import shared
from tests.vectors.training.pas_reference import (
    VARIANTS,
    Added,
    PlainModel,
    answer_of,
    best,
    plain_model,
    try_grid,
)
from vectors.data import (
    ChoiceItem,
    DataSet,
    PairItem,
    Parts,
    ShownItem,
    read_data,
    read_task,
    shuffle_alike,
    shuffle_options,
    split_items,
)
from vectors.data.items import LETTERS
from vectors.errors import InvalidData
from vectors.training.baseline_directions import lda_direction, logistic_direction, mean_difference, pca_direction
from vectors.training.examiner import Examiner
from vectors.training.method import Method
from vectors.training.model_view import Continuations, Steering
from vectors.training.options import BASELINES
from vectors.training.train import Trained, TrainingData, train
from vectors.vector import SteeringVector
from vectors.vocabulary import POSITIONS, SITES

SEED = 3
WAYS = [
    {"prompt": "raw", "letters": "balanced"},
    {"prompt": "raw", "letters": "paper"},
    {"prompt": "chat", "letters": "balanced"},
    {"prompt": "chat", "letters": "paper"},
]
RAW = [way for way in WAYS if way["prompt"] == "raw"]


@dataclass(frozen=True)
class Both:
    """The same float32 model twice: behind the engine, and plain."""

    view: EngineView
    plain: PlainModel


@contextlib.contextmanager
def probing(model: LoadedModel, text: TextProcessor) -> Iterator[EngineView]:
    """A view of `model` on an engine of its own."""
    with BatchingEngine(model, EngineSettings(num_pages=2000, page_size=8, max_batch_tokens=512)) as engine:
        yield EngineView(engine, text)


@contextlib.contextmanager
def both_of(folder: Path) -> Iterator[Both]:
    """A folder's model in float32."""
    with probing(load_model(folder, device="cpu", dtype="float32"), load_text(folder)) as view:
        yield Both(view, plain_model(folder))


@pytest.fixture(scope="module")
def demo() -> Iterator[Both]:
    with both_of(MODEL_DIR) as both:
        yield both


@pytest.fixture(scope="module")
def stories() -> Iterator[Both]:
    with both_of(shared("models/TinyStories-656K")) as both:
        yield both


def sycophancy(count: int, seed: int = 5) -> DataSet:
    """Questions whose user believes something wrong."""
    return read_data(b"\n".join(_row(item) for item in quiz_items(seed, count, "held_out", "wrong")), "syco.jsonl")


def _row(item: Any) -> bytes:
    row = {"question": item.question, "choices": item.choices, "answer": item.answer, "context": item.context}
    return json.dumps(row).encode()


def sample(task: str, folder: str, count: int) -> DataSet:
    """Some items of a published data set."""
    data = read_task(task, shared(f"data/{folder}"))
    items = random.Random(SEED).sample(data.items, count)
    return DataSet(task, data.sha256, tuple(items))  # type: ignore[arg-type]


def method_of(**options: object) -> Method:
    """A method that always publishes."""
    return Method.from_json({"allow_no_gain": True} | options)


def run(view: EngineView, data: DataSet, method: Method) -> Trained:
    """One training."""
    return train(view, TrainingData(data), method, seed=SEED, report=lambda progress: None)


def shown_parts(data: DataSet, method: Method) -> Parts[Any]:
    """The three parts as they are asked."""
    parts = split_items(data.items, method.split, SEED, method.max_items, by_item=method.is_paper)
    if isinstance(data.items[0], PairItem):
        return parts
    shuffle = shuffle_alike if method.is_paper else shuffle_options
    return Parts(*(shuffle(part, SEED) for part in (parts.train, parts.validation, parts.test)))  # type: ignore[arg-type]


def plain_way(plain: PlainModel, way: dict[str, str], exemplars: Sequence[ShownItem] = ()) -> PlainModel:
    """The plain model, asked as the method's options say."""
    return plain.but(chat=way["prompt"] == "chat", paper=way["letters"] == "paper", exemplars=exemplars)


def assert_same_direction(found: torch.Tensor, expected: torch.Tensor, place: object) -> None:
    one, other = found.double(), expected.double()
    assert torch.cosine_similarity(one, other, dim=0) > 0.9999, place
    assert abs(one.norm() - other.norm()) <= 1e-3 * other.norm(), place


def assert_same_vectors(
    trained: Trained, expected: dict[str, Any], variants: Sequence[str], layers: Sequence[int]
) -> None:
    """Every cell's direction is the reference's, and no place is missing."""
    for cell in trained.cells:
        (direction,) = cell.vector.directions.values()
        assert cell.vector.layers == (cell.layer,)
        assert (cell.vector.site, cell.vector.operation, cell.vector.positions) == (cell.site, "add", "response")
        place = (cell.variant, cell.site, cell.layer)
        assert_same_direction(direction, expected[cell.variant][cell.site][cell.layer], place)
    places = {(variant, site, layer) for variant in variants for site in SITES for layer in layers}
    assert {(cell.variant, cell.site, cell.layer) for cell in trained.cells} == places
    assert trained.vector is not None
    chosen = trained.report["chosen"]
    (direction,) = trained.vector.directions.values()
    assert_same_direction(direction, expected[chosen["variant"]][chosen["site"]][chosen["layers"][0]], chosen)
    assert trained.vector.default_scale == chosen["scale"]


def assert_vectors_equal(both: Both, data: DataSet, way: dict[str, str]) -> None:
    layers = list(range(1 if way["letters"] == "paper" else 0, both.view.num_layers))
    method = method_of(variant="all", site="all", layers=layers, scales=[1.0], **way)
    training = shown_parts(data, method).train
    plain = plain_way(both.plain, way)
    expected = plain.directions(training, VARIANTS, offset=method.is_paper)
    assert_same_vectors(run(both.view, data, method), expected, VARIANTS, layers)


@pytest.mark.parametrize("way", RAW, ids=lambda way: "-".join(way.values()))
@pytest.mark.parametrize(("task", "folder"), [("bbq/nationality", "bbq"), ("ethics/justice", "ethics")])
def test_vectors_are_the_references_on_tinystories(stories: Both, task: str, folder: str, way: dict[str, str]) -> None:
    assert_vectors_equal(stories, sample(task, folder, 20), way)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: "-".join(way.values()))
def test_vectors_are_the_references_on_the_embedded_model(demo: Both, way: dict[str, str]) -> None:
    assert_vectors_equal(demo, sycophancy(24), way)


@pytest.mark.parametrize("offset", [False, True])
def test_the_offset_can_be_chosen_apart_from_the_letters(demo: Both, offset: bool) -> None:
    data, letters = sycophancy(24), "paper" if not offset else "balanced"
    method = method_of(layers=[1, 3], scales=[1.0], letters=letters, paper_offset=offset)
    plain = demo.plain.but(paper=method.is_paper)
    expected = plain.directions(shown_parts(data, method).train, ["ipas_wrong_only"], offset=offset)
    for cell in run(demo.view, data, method).cells:
        assert_same_direction(cell.vector.directions[cell.layer], expected[cell.variant][cell.site][cell.layer], cell)


# the largest scale first, so that the smallest dose among ties is never the first
GRID: dict[str, Any] = {
    "variants": ("ipas_wrong_only", "pas_full"),
    "sites": ("residual",),
    "layers": (2, 3),
    "scales": (4.0, 2.0, 1.0, 0.5),
}


@pytest.mark.parametrize("letters", ["balanced", "paper"])
def test_the_search_and_the_test_are_the_slow_loops(demo: Both, letters: str) -> None:
    data = sycophancy(80)
    method = method_of(
        variant=list(GRID["variants"]),
        layers=list(GRID["layers"]),
        scales=list(GRID["scales"]),
        letters=letters,
        split={"train": 0.6, "validation": 0.25, "test": 0.15},
    )
    parts = shown_parts(data, method)
    plain = demo.plain.but(paper=method.is_paper)
    layers = (3, 2) if letters == "paper" else (2, 3)  # the authors try the last layer first
    unsteered, tried = try_grid(plain, parts.train, parts.validation, **GRID | {"layers": layers})
    trained = run(demo.view, data, method)
    report = trained.report
    assert report["baseline"]["validation"] == pytest.approx(unsteered)
    cells = [(cell.variant, cell.site, cell.layer, cell.scale) for cell in trained.cells]
    assert cells == [(cell.variant, cell.site, cell.layer, cell.scale) for cell in tried]
    assert [cell.accuracy for cell in trained.cells] == pytest.approx([cell.accuracy for cell in tried])
    assert [cell.relative_dose for cell in trained.cells] == pytest.approx(
        [cell.relative_dose for cell in tried], rel=1e-4
    )

    expected = best(tried, paper=method.is_paper)
    ties = [cell for cell in tried if cell.accuracy == expected.accuracy]
    assert len(ties) > 1
    assert best(tried, paper=True) != best(tried, paper=False)
    chosen = report["chosen"]
    found = (chosen["variant"], chosen["site"], chosen["layers"], chosen["scale"])
    assert found == (expected.variant, expected.site, [expected.layer], expected.scale)

    directions = plain.directions(parts.train, [expected.variant], offset=method.is_paper)
    direction = directions[expected.variant][expected.site][expected.layer]
    added = [Added(direction, expected.site, expected.layer, expected.scale)]
    test = report["test"]
    assert report["baseline"]["test"]["value"] == pytest.approx(plain.balanced_accuracy(parts.test))
    assert test["accuracy"]["value"] == pytest.approx(plain.balanced_accuracy(parts.test, added))
    assert test["presented"]["baseline"] == pytest.approx(plain.accuracy(parts.test))
    assert test["presented"]["steered"] == pytest.approx(plain.accuracy(parts.test, added))


def test_baselines_are_the_plain_models(demo: Both) -> None:
    """What each scores on the test items, from activations and prompts of plain transformers."""
    data = sycophancy(60)
    method = method_of(variant="pas_full", layers=[2, 3], scales=[1.0, 4.0], baselines="all")
    parts, plain = shown_parts(data, method), demo.plain
    report = run(demo.view, data, method).report
    table = {one["name"]: one for one in report["baselines"]}
    assert set(table) == set(BASELINES)
    chosen = [plain.choice(shown) for shown in parts.train]
    groups = plain.groups("pas_full", parts.train, chosen)
    spoken: tuple[list[list[int]], list[list[int]]] = ([], [])
    for number, shown in enumerate(parts.train):
        count = len(shown.order)
        for texts, place in zip(spoken, (shown.answer, shown.answer + 1 + number % (count - 1)), strict=True):
            texts.append(plain.question(shown, f" {LETTERS[place % count]}"))
    made = {"lda": lda_direction, "logistic": logistic_direction, "pca": pca_direction, "caa": mean_difference}
    for name, direction_of in made.items():
        found = table[name]["chosen"]
        site, layer = found["site"], found["layer"]
        positive, negative = (
            torch.stack([plain.last_activations(tokens)[site][layer] for tokens in texts]).numpy()
            for texts in (spoken if name == "caa" else groups)
        )
        direction = torch.from_numpy(direction_of(positive, negative))
        assert table[name]["norm"] == pytest.approx(float(direction.norm()), rel=1e-3), name
        added = [Added(direction, site, layer, found["scale"])]
        assert table[name]["accuracy"]["value"] == pytest.approx(plain.balanced_accuracy(parts.test, added)), name
    found = table["random"]["chosen"]
    above, below = (plain.mean(texts)[found["site"]][found["layer"]] for texts in groups)
    assert table["random"]["norm"] == pytest.approx(float((above - below).norm()), rel=1e-3)
    assert table["random"]["vector_over"]["gain"] > 0.2
    system = table["prompt"]["chosen"]["system_prompt"]
    told = [
        ShownItem(replace(shown.item, question=f"{system}\n\n{shown.item.question}"), shown.order)
        for shown in parts.test
    ]
    assert table["prompt"]["accuracy"]["value"] == pytest.approx(plain.balanced_accuracy(told))
    solved = plain.but(exemplars=parts.train[:10])
    assert table["icl"]["accuracy"]["value"] == pytest.approx(solved.balanced_accuracy(parts.test))


def test_the_rotations_count_apart_from_the_order_shown(stories: Both) -> None:
    """TinyStories knows no answers and likes some letter: in one order it scores otherwise than over all."""
    data = sample("ethics/justice", "ethics", 90)
    same = tuple(item for item in data.items if isinstance(item, ChoiceItem) and item.answer == 0)
    data = DataSet(data.name, data.sha256, same)
    method = method_of(variant="mean_difference", layers=[1], scales=[2.0], letters="paper")
    parts = shown_parts(data, method)
    plain = stories.plain.but(paper=True)
    report = run(stories.view, data, method).report
    balanced, presented = plain.balanced_accuracy(parts.test), plain.accuracy(parts.test)
    assert abs(balanced - presented) > 0.05
    assert report["baseline"]["test"]["value"] == pytest.approx(balanced)
    assert report["test"]["presented"]["baseline"] == pytest.approx(presented)
    bias = report["test"]["presented"]["gain"] - report["test"]["gain"]
    assert report["test"]["letter_bias"] == pytest.approx(bias)


def some_steerings(hidden: int, count: int) -> tuple[list[tuple[Steering, ...]], list[list[Added]]]:
    """The plain model, then random directions at all sites, one or two at a time: for the view, and plain."""
    draw = random.Random(0)
    steerings: list[tuple[Steering, ...]] = [()]
    added: list[list[Added]] = [[]]
    for number in range(1, count):
        generator = torch.Generator().manual_seed(number)
        own = []
        for _ in range(draw.choice((1, 1, 2))):
            direction = torch.randn(hidden, generator=generator)
            own.append(Added(direction, draw.choice(SITES), draw.randrange(2), draw.uniform(-1, 1)))
        added.append(own)
        steerings.append(
            tuple(Steering(SteeringVector({one.layer: one.direction}, site=one.site), one.scale) for one in own)  # type: ignore[arg-type]
        )
    return steerings, added


def test_next_tokens_are_as_likely_as_in_plain_transformers(demo: Both) -> None:
    shown = shuffle_options([item for item in sycophancy(8).items if isinstance(item, ChoiceItem)], SEED)
    prompts = [demo.view.encode(f"{one.item.question}{' word' * place}") for place, one in enumerate(shown)]
    token_ids = [tuple(range(5 * place, 5 * place + 3 + place)) for place in range(len(prompts))]
    steerings, added = some_steerings(demo.view.hidden_size, 9)
    found = dict(demo.view.next_token_logits(prompts, token_ids, steerings))
    assert sorted(found) == list(range(len(prompts)))
    for index, prompt in enumerate(prompts):
        rows = [demo.plain.logits(prompt, own)[-1][list(token_ids[index])] for own in added]
        assert (found[index] - torch.stack(rows)).abs().max() < 1e-4


def test_continuations_are_as_likely_as_in_plain_transformers(demo: Both) -> None:
    prompt = demo.view.encode("The capital of the north is")
    choices = tuple(demo.view.encode(text) for text in (" a", " a very old town", " a very new", " nothing"))
    steerings, added = some_steerings(demo.view.hidden_size, 6)
    queries = [Continuations(prompt, choices, steering) for steering in steerings]
    found = dict(demo.view.continuation_logprobs(queries))
    assert sorted(found) == list(range(len(queries)))
    for index, own in enumerate(added):
        for choice, logprobs in zip(choices, found[index], strict=True):
            assert logprobs == pytest.approx(demo.plain.continuation(prompt, choice, own), abs=1e-4)


def _tiny_config() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.25,
    )


def symbol_model(merges: Sequence[tuple[str, str]]) -> tuple[LoadedModel, PlainModel, TextProcessor]:
    """A tiny random model over bytes, where `merges` make further tokens; prepared for the engine, and plain."""
    tokenizer = byte_tokenizer()
    if merges:
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        symbols = ["<|pad|>", "<|im_start|>", "<|im_end|>", *alphabet, *(left + right for left, right in merges)]
        backend = Tokenizer(models.BPE({symbol: number for number, symbol in enumerate(symbols)}, list(merges)))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.decoder = decoders.ByteLevel()
        template = tokenizer.chat_template
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|pad|>")
        tokenizer.chat_template = template
    modules = []
    for _ in range(2):
        torch.manual_seed(3)
        module = LlamaForCausalLM(_tiny_config()).eval()
        with torch.no_grad():  # a space is very likely after some prompts, so that both spellings matter
            module.lm_head.weight[tokenizer.convert_tokens_to_ids("Ġ")] *= -6
        modules.append(module)
    loaded = prepare_model(modules[0], model_id="symbols")
    return loaded, PlainModel(modules[1], tokenizer), TextProcessor(tokenizer)


SPACED = [("Ġ", letter) for letter in "ABCD"]
MELTED = [(":", letter) for letter in "ABCD"]


@pytest.mark.parametrize("prompt", ["raw", "chat"])
@pytest.mark.parametrize(
    ("merges", "shares_first_tokens"),
    [([], True), (SPACED, False), ([*MELTED, *SPACED], False), (MELTED, True), ([(":", "Ġ")], True)],
    ids=["a space first", "told apart", "melts, told apart", "melts, a space first", "a space melts"],
)
def test_a_letter_is_as_likely_as_all_its_spellings(
    merges: list[tuple[str, str]], shares_first_tokens: bool, prompt: str
) -> None:
    loaded, plain, text = symbol_model(merges)
    plain = plain.but(chat=prompt == "chat")
    bare = plain.but(chat=prompt == "chat", paper=True)
    items = [ChoiceItem(f"Which is {place}?", tuple("pqrs"[: 2 + place % 3]), place % 2) for place in range(12)]
    shown = shuffle_options(items, SEED)
    firsts = [tokens[0] for own in plain.spellings(shown[2]) for tokens in own]
    assert (len(set(firsts)) < len(firsts)) == shares_first_tokens
    steerings, added = some_steerings(32, 3)
    with probing(loaded, text) as view:
        chosen = Examiner(view, method_of(prompt=prompt)).choose(shown, steerings)
        chosen_bare = Examiner(view, method_of(prompt=prompt, letters="paper")).choose(shown, steerings)
    assert chosen.tolist() == [[plain.letter(one, own) for one in shown] for own in added]
    assert chosen_bare.tolist() == [[bare.letter(one, own) for one in shown] for own in added]
    if prompt == "raw":  # else it would not show whether spellings are summed
        assert chosen.tolist() != chosen_bare.tolist()


def test_many_steerings_and_prompts_come_back_where_they_belong() -> None:
    loaded, plain, text = symbol_model([])
    prompts = [tuple(text.encode(f"{place} and more")) for place in range(70)]
    steerings, added = some_steerings(32, MAX_BRANCHES + 44)
    with probing(loaded, text) as view:
        found = dict(view.next_token_logits(prompts, [(5, 6, 7)] * len(prompts), steerings))
    assert sorted(found) == list(range(len(prompts)))
    draw = random.Random(0)
    for index in draw.sample(range(len(prompts)), 10):
        assert found[index].shape == (len(steerings), 3)
        for number in [0, MAX_BRANCHES - 1, MAX_BRANCHES, *draw.sample(range(len(steerings)), 5)]:
            expected = plain.logits(prompts[index], added[number])[-1][[5, 6, 7]]
            assert (found[index][number] - expected).abs().max() < 1e-4, (index, number)


def test_steerings_of_other_positions_and_parts_are_told_apart() -> None:
    """An answer that is scored is content, so a vector that leaves content alone steers nothing of it."""
    loaded, plain, text = symbol_model([])
    prompts = [tuple(text.encode(f"{place} is a number of some length")) for place in range(5)]
    steerings, steers = [], []
    for number, (positions, parts) in enumerate([*itertools.product(POSITIONS, (("content",), ("tool_calls",)))] * 2):
        direction = torch.randn(32, generator=torch.Generator().manual_seed(number)) * 3
        vector = SteeringVector({number % 3: direction}, positions=positions, parts=parts)  # type: ignore[arg-type]
        steerings.append((Steering(vector, 1.0),))
        steers.append(Steer(direction, number % 3, positions=positions, parts=parts))
    with probing(loaded, text) as view:
        found = dict(view.next_token_logits(prompts, [(5, 6, 7)] * len(prompts), steerings))
    for index, prompt in enumerate(prompts):
        for number, steer in enumerate(steers):
            expected = steered_logits(plain.model, prompt, [steer])[-1][[5, 6, 7]]
            assert (found[index][number] - expected).abs().max() < 1e-4, (index, number)
    with probing(loaded, text) as view:
        queries = [Continuations(prompts[0], ((5, 6, 7),), steering) for steering in steerings]
        continued = dict(view.continuation_logprobs(queries))
    for number, steer in enumerate(steers):
        logits = steered_logits(plain.model, (*prompts[0], 5, 6, 7), [steer], len(prompts[0]))
        rows = torch.log_softmax(logits, -1)[len(prompts[0]) - 1 : -1]
        wanted = [float(row[token]) for row, token in zip(rows, (5, 6, 7), strict=True)]
        (answer,) = continued[number]
        assert answer == pytest.approx(wanted, abs=1e-4)


def pairs(kind: str) -> DataSet:
    """True and false answers to the quiz, as pairs of texts or as preferences."""
    rows: list[dict[str, Any]] = []
    for item in quiz_items(9, 32, "held_out", "wrong"):
        assert item.user_answer is not None
        question = f"{item.question} {item.context}."
        right, wrong = item.choices[item.answer], item.choices[item.user_answer]
        if kind == "texts":
            rows.append({"prompt": question, "positive": right, "negative": wrong})
        elif kind == "bare texts":
            rows.append({"positive": f"{question} {right}", "negative": f"{question} {wrong}"})
        else:
            messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": question}]
            preferred, other = ([{"role": "assistant", "content": text}] for text in (right, wrong))
            rows.append({"input": {"messages": messages}, "preferred_output": preferred, "non_preferred_output": other})
    return read_data(b"\n".join(json.dumps(row).encode() for row in rows), f"{kind}.jsonl")


@pytest.mark.parametrize(
    ("kind", "prompt"), [("texts", "raw"), ("bare texts", "raw"), ("preferences", "raw"), ("preferences", "chat")]
)
def test_pairs_of_texts_train(demo: Both, kind: str, prompt: str) -> None:
    data = pairs(kind)
    variants = ["ipas_wrong_only", "ipas_all", "mean_difference"]
    method = method_of(variant=variants, site="all", layers=[1, 4], scales=[1.0], prompt=prompt)
    parts = shown_parts(data, method)
    plain = demo.plain.but(chat=prompt == "chat")
    trained = run(demo.view, data, method)
    report = trained.report
    expected = plain.directions(parts.train, variants, offset=False)
    assert_same_vectors(trained, expected, variants, [1, 4])
    assert report["baseline"]["validation"] == pytest.approx(plain.accuracy(parts.validation))
    assert report["baseline"]["test"]["value"] == pytest.approx(plain.accuracy(parts.test))
    chosen = report["chosen"]
    place = chosen["site"], chosen["layers"][0]
    added = [Added(expected[chosen["variant"]][place[0]][place[1]], *place, chosen["scale"])]
    assert report["test"]["accuracy"]["value"] == pytest.approx(plain.accuracy(parts.test, added))
    assert report["test"]["letter_bias"] == pytest.approx(0, abs=1e-12)
    assert report["test"]["letters"] is None


def test_pairs_have_no_lettered_prompt(demo: Both) -> None:
    with pytest.raises(InvalidData, match="no lettered options; use ipas_wrong_only, ipas_all or mean_difference"):
        run(demo.view, pairs("texts"), method_of(variant="pas_full"))
    trained = run(demo.view, pairs("texts"), method_of(variant="all", layers=[2], scales=[1.0]))
    assert {cell.variant for cell in trained.cells} == set(VARIANTS) - {"pas_full"}
    assert any("pas_full" in note for note in trained.report["notes"])


@pytest.mark.parametrize("way", [WAYS[0], WAYS[2]], ids=lambda way: "-".join(way.values()))
def test_solved_examples_stand_before_every_prompt(demo: Both, way: dict[str, str]) -> None:
    data = sycophancy(24)
    method = method_of(variant="all", site="all", layers=[1, 4], scales=[1.0], icl=3, **way)
    parts = shown_parts(data, method)
    plain = plain_way(demo.plain, way)
    wrong = [shown for shown in parts.train if plain.letter(shown) != answer_of(shown)]
    exemplars = wrong[:3]
    after = plain_way(demo.plain, way, exemplars)
    training = [shown for shown in parts.train if shown not in exemplars]
    trained = run(demo.view, data, method)
    expected = after.directions(training, VARIANTS, offset=method.is_paper)
    assert trained.report["notes"] == []
    for cell in trained.cells:
        direction = cell.vector.directions[cell.layer]
        assert_same_direction(direction, expected[cell.variant][cell.site][cell.layer], cell)
    assert trained.report["icl"]["plain_baseline_test"] == pytest.approx(plain.balanced_accuracy(parts.test))
    assert trained.report["baseline"]["test"]["value"] == pytest.approx(after.balanced_accuracy(parts.test))
    assert trained.report["baseline"]["validation"] == pytest.approx(after.accuracy(parts.validation))
    lengths = after.mean_length([after.question(shown) for shown in training])
    for cell in trained.cells:
        length = float(lengths[cell.site][cell.layer])
        assert cell.dose / cell.relative_dose == pytest.approx(length, rel=1e-4)


@pytest.mark.parametrize("prompt", ["raw", "chat"])
def test_the_papers_examples_are_any_and_stay_in_training(demo: Both, prompt: str) -> None:
    """They are written without a space, PASf is taken without them, and the other variants after them."""
    data, way = sycophancy(24), {"prompt": prompt, "letters": "paper"}
    method = method_of(variant="all", site="all", layers=[1, 4], scales=[1.0], icl=3, **way)
    parts = shown_parts(data, method)
    plain = plain_way(demo.plain, way)
    exemplars = random.Random(f"{SEED} exemplars").sample(parts.train, 3)
    after = plain_way(demo.plain, way, exemplars)
    if prompt == "raw":
        written = plain.tokenizer.decode(after.question(parts.test[0]), skip_special_tokens=True)
        first = exemplars[0]
        assert f"Respond with a single letter.\nAnswer:{'ABCD'[first.order.index(first.item.answer)]}\n\n" in written
    trained = run(demo.view, data, method)
    bare, shown = (one.directions(parts.train, VARIANTS, offset=True) for one in (plain, after))
    for cell in trained.cells:
        expected = (bare if cell.variant == "pas_full" else shown)[cell.variant][cell.site][cell.layer]
        assert_same_direction(cell.vector.directions[cell.layer], expected, cell)
    assert trained.report["data"]["split"]["train"] == len(parts.train)
    assert trained.report["baseline"]["validation"] == pytest.approx(after.accuracy(parts.validation))
    assert trained.report["baseline"]["test"]["value"] == pytest.approx(after.balanced_accuracy(parts.test))


@pytest.mark.parametrize("letters", ["balanced", "paper"])
def test_relative_scales_are_shares_of_the_activations_length(demo: Both, letters: str) -> None:
    data = sycophancy(24)
    method = method_of(
        site="all", layers=[1, 3], scales=[0.5, -0.25, 0.1], relative_scales=True, letters=letters, variant="all"
    )
    plain = demo.plain.but(paper=method.is_paper)
    lengths = plain.mean_length([plain.question(shown) for shown in shown_parts(data, method).train])
    trained = run(demo.view, data, method)
    assert len(trained.cells) == len(VARIANTS) * len(SITES) * 2 * 3
    for cell in trained.cells:
        added = cell.scale * cell.vector.directions[cell.layer].double()
        length = float(lengths[cell.site][cell.layer])
        assert float(added.norm()) == pytest.approx(abs(cell.shown_scale) * length, rel=1e-4)
        assert (cell.scale < 0) == (cell.shown_scale < 0)
        assert cell.dose == pytest.approx(float(added.norm()), rel=1e-4)
        assert cell.relative_dose == pytest.approx(abs(cell.shown_scale), rel=1e-4)
    assert trained.vector is not None
    assert trained.vector.default_scale == trained.report["chosen"]["scale"]
    assert trained.report["chosen"]["grid_scale"] in method.scale_grid("residual")
