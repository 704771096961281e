"""Layers with a sliding window or chunks keep what they can still see, and nothing else changes."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
import transformers

from server.engine.attention.interface import Reach
from server.engine.engine import BatchingEngine
from server.engine.kv_pages import KVPages, most_pages
from server.engine.memory import plan_memory
from server.engine.model import LoadedModel, prepare_model
from server.engine.page_table import PageTable, SequencePages
from server.engine.request import EngineRequest, Generate
from tests.server.engine.driving import GREEDY, engine_of, loaded, prompt_of, run, tokens_of

PAGE_SIZE = 4
CHUNK = 8
GIB = 2**30


def llama4() -> LoadedModel:
    """Chunks in three layers of four."""
    config = transformers.Llama4TextConfig(
        vocab_size=101,
        hidden_size=32,
        intermediate_size=16,
        intermediate_size_mlp=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        num_local_experts=2,
        interleave_moe_layer_step=1,
        attention_chunk_size=CHUNK,
        max_position_embeddings=128,
        initializer_range=0.3,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
    )
    torch.manual_seed(0)
    return prepare_model(transformers.Llama4ForCausalLM(config).eval())


@pytest.fixture(scope="module", params=["mistral", "gemma3", "llama4"])
def model(request: pytest.FixtureRequest) -> LoadedModel:
    """Windows in all layers, windows in some, chunks in some."""
    return llama4() if request.param == "llama4" else loaded(request.param)


def test_chunks_that_only_the_models_mask_has_are_known() -> None:
    chunked = Reach(chunk=CHUNK)
    assert [layer.reach for layer in llama4().attention_layers if layer] == [chunked, chunked, chunked, Reach()]


@pytest.fixture
def engine(model: LoadedModel, request: pytest.FixtureRequest) -> Iterator[BatchingEngine]:
    """An engine whose windows have few pages."""
    changes = getattr(request, "param", {})
    num_groups = len(model.page_groups)
    engine = engine_of(model, max_running=6, **{"num_window_pages": [16] * (num_groups - 1), **changes})
    yield engine
    engine.close()


def by_transformers(model: LoadedModel, prompt: Sequence[int], num_tokens: int) -> list[int]:
    """What the model's class generates, with a mask in place of pages; on weights of its own with its own attention."""
    fresh: Any = type(model.module)(model.module.config.__class__.from_dict(model.module.config.to_dict())).eval()
    fresh.load_state_dict(model.module.state_dict())
    fresh.set_attn_implementation("eager")
    tokens = list(prompt)
    for _ in range(num_tokens):
        with torch.no_grad():
            tokens.append(int(fresh(torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax()))
    return tokens[len(prompt) :]


def requests_of(*lengths: int, num_tokens: int = 8) -> list[EngineRequest]:
    """One greedy request a length; prompts begin alike."""
    return [EngineRequest(str(length), prompt_of(length), Generate(num_tokens, GREEDY)) for length in lengths]


@pytest.mark.parametrize(
    "engine",
    [{"max_batch_tokens": 32}, {"max_batch_tokens": 5, "num_pages": 24}, {"prefix_cache": False}],
    indirect=True,
    ids=str,
)
def test_answers_are_those_of_the_whole_context(model: LoadedModel, engine: BatchingEngine) -> None:
    lengths = (1, 6, 23, 41)
    expected = {str(length): by_transformers(model, prompt_of(length), 8) for length in lengths}
    for _ in range(2):  # the second time from the prefix cache, as far as its pages are left
        outputs = run(engine, requests_of(*lengths))
        assert {name: tokens_of(events) for name, events in outputs.items()} == expected


def test_no_sequence_holds_more_than_its_layers_see(model: LoadedModel) -> None:
    engine = engine_of(model, max_batch_tokens=8, prefix_cache=False)
    most = [0] * len(model.page_groups)

    def look(_: int) -> None:
        paging = engine.stats().paging
        assert paging is not None
        for group, pool in enumerate(paging.pools):
            most[group] = max(most[group], pool.num_pages - pool.num_free_pages)

    run(engine, requests_of(60, num_tokens=20), look)
    engine.close()
    allowed = [most_pages(reach, 79, max_chunk=8, page_size=PAGE_SIZE) for reach in model.page_groups]
    assert all(held <= number for held, number in zip(most, allowed, strict=True))
    for reach, held in zip(model.page_groups, most, strict=True):
        assert (held == 20) is (reach.num_tokens is None)
        assert (held <= 5) is (reach.num_tokens is not None)


def test_a_window_alone_serves_contexts_that_its_pages_could_not_hold() -> None:
    model = loaded("mistral")
    engine = engine_of(model, num_pages=8, max_batch_tokens=8)
    [events] = run(engine, requests_of(70, num_tokens=20)).values()
    assert tokens_of(events) == by_transformers(model, prompt_of(70), 20)
    assert engine.stats().paging is not None
    engine.close()


def test_a_prefix_is_shared_while_its_window_is_there(model: LoadedModel, engine: BatchingEngine) -> None:
    [first] = run(engine, requests_of(48)).values()
    [again] = run(engine, requests_of(48)).values()
    assert tokens_of(again) == tokens_of(first)
    assert (first[-1].num_cached_tokens, again[-1].num_cached_tokens) == (0, 44)


def test_a_prefix_can_be_used_if_every_pool_has_what_is_seen_after_it() -> None:
    generator = random.Random(0)
    for _ in range(300):
        reaches = generator.choice([(Reach(),), (Reach(), Reach(window=6), Reach(chunk=12)), (Reach(window=9),)])
        kv = KVPages(reaches, [40] * len(reaches), PAGE_SIZE, max_chunk=8)
        there = [{index for index in range(12) if generator.random() < 0.8} for _ in reaches]
        for pool, indices in zip(kv.pools, there, strict=True):
            for index in indices:
                page = pool.allocate(None)
                assert page is not None
                pool.register(page, bytes([index]))
        limit = generator.randint(0, 12)

        usable = [
            all(
                set(range(reach.first_seen(number * PAGE_SIZE) // PAGE_SIZE, number)) <= own
                for reach, own in zip(reaches, there, strict=True)
            )
            for number in range(limit + 1)
        ]
        expected = max(number for number, is_usable in enumerate(usable) if is_usable)
        assert kv.num_cached(lambda index: bytes([index]), limit) == expected


def test_a_table_tells_where_the_tokens_lie_that_are_left() -> None:
    generator = random.Random(0)
    for _ in range(50):
        table, pages, first = PageTable(PAGE_SIZE), list[int](), 0
        numbers = iter(generator.sample(range(0, 90, 3), 30))
        while len(pages) < 20:
            start = next(numbers)
            for page in range(start, start + generator.randint(1, 3)):
                table.append(page)
                pages.append(page)
            dropped = table.drop_before(generator.randint(0, len(pages)))
            assert dropped == pages[first : first + len(dropped)]
            first += len(dropped)
            assert (table.first, table.end, table.pages) == (first, len(pages), pages[first:])
            num_tokens = generator.randint(first * PAGE_SIZE, len(pages) * PAGE_SIZE)
            slots = [pages[position // PAGE_SIZE] * PAGE_SIZE + position % PAGE_SIZE for position in range(num_tokens)]
            for position in range(first * PAGE_SIZE, num_tokens):
                found = table.stretches(num_tokens).since(position)
                assert [slot for stretch in found for slot in range(*stretch)] == slots[position:]


def test_pages_are_taken_from_all_pools_or_from_none() -> None:
    kv = KVPages((Reach(), Reach(window=6)), (9, 3), PAGE_SIZE, max_chunk=8)
    one, other = SequencePages(kv), SequencePages(kv)
    assert one.reserve(8)
    assert not other.reserve(8)
    assert [pool.num_available for pool in kv.pools] == [7, 1]
    one.advance(8, lambda index: bytes([index]))
    assert other.reserve(4)
    one.release()
    other.release()
    assert [pool.num_available for pool in kv.pools] == [9, 3]


def test_what_a_window_saves_holds_longer_contexts() -> None:
    """Gemma 3 with the published heads: within 1 GiB, three times the context that it had with whole windows."""
    config = transformers.Gemma3TextConfig(
        vocab_size=256,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=256,
        sliding_window=1024,
        max_position_embeddings=32768,
        layer_types=["sliding_attention"] * 5 + ["full_attention"],
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
    )
    torch.manual_seed(0)
    model = prepare_model(transformers.Gemma3ForCausalLM(config).eval().to(torch.bfloat16))
    assert model.kv_bytes_per_token == (4096, 20480)
    for max_running in (4, 64):
        plan = plan_memory(
            model, kv_cache_gib=1, free_bytes=GIB, max_running=max_running, max_batch_tokens=512, page_size=16
        )
        as_whole = GIB // sum(model.kv_bytes_per_token) // 16
        assert plan.num_pages > 3 * as_whole
        used = 16 * (4096 * plan.num_pages + 20480 * plan.num_window_pages[0])
        assert 0.999 * GIB < used <= GIB
