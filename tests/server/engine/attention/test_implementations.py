"""Every implementation of attention equals a plain softmax over what each token sees, whatever pages hold it."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from server.engine.attention.choice import ATTENTIONS
from server.engine.attention.interface import (
    NO_SLOT,
    AttentionArguments,
    LayerAttention,
    PagedAttention,
    Reach,
    Segment,
    Stretches,
    page_groups,
)

PAGE_SIZE = 4
NUM_PAGES = 60
SHAPES = (
    LayerAttention(2, 8, 8),
    LayerAttention(1, 16, 16),
    LayerAttention(3, 8, 4),
    LayerAttention(1, 12, 8, is_latent=True),
    LayerAttention(2, 8, 8, shares=0),
)
TokenKV = tuple[Tensor, Tensor]
"""One token's key `[kv_heads, key_dim]` and value `[kv_heads, value_dim]`."""


@dataclass
class Story:
    """A sequence as a reference keeps it: every layer's KV, token by token; and the pages that it lies in."""

    pages: list[int]
    kv: list[list[TokenKV]] = field(default_factory=lambda: [[] for _ in SHAPES])

    @property
    def length(self) -> int:
        """Tokens that are kept."""
        return len(self.kv[0])

    def slots(self, group: int, first: int, last: int) -> list[int]:
        """Where a group keeps the tokens at positions `[first, last)`: each group has another order of the pages."""
        pages = [page ^ group for page in self.pages]
        return [pages[position // PAGE_SIZE] * PAGE_SIZE + position % PAGE_SIZE for position in range(first, last)]

    def segment(self, reaches: Sequence[Reach], start: int, num_new: int, is_branching: bool) -> Segment:
        """Its next tokens, at `start` of a pack, with no page that groups of these `reaches` do not see again."""
        end = self.length + (0 if is_branching else num_new)
        kept = []
        for group, reach in enumerate(reaches):
            first = reach.first_seen(self.length) // PAGE_SIZE * PAGE_SIZE
            stretches: list[tuple[int, int]] = []
            for slot in self.slots(group, first, end):
                if stretches and stretches[-1][1] == slot:
                    stretches[-1] = (stretches[-1][0], slot + 1)
                else:
                    stretches.append((slot, slot + 1))
            kept.append(Stretches(tuple(stretches), first))
        return Segment(start, start + num_new, self.length, tuple(kept), is_branching)


@dataclass
class Part:
    """What one sequence brings to a step."""

    story: Story
    num_new: int
    is_branching: bool = False


def expected(query: Tensor, before: Sequence[TokenKV], layer: LayerAttention, arguments: AttentionArguments) -> Tensor:
    """Plain attention of the last token of `before`, `[heads, key_dim]` -> `[heads, value_dim]`, over what it sees."""
    seen = before if layer.reach.window is None else before[-layer.reach.window :]
    if layer.reach.chunk is not None:
        seen = before[(len(before) - 1) // layer.reach.chunk * layer.reach.chunk :]
    num_groups = query.shape[0] // seen[0][0].shape[0]
    keys = torch.stack([key for key, _ in seen]).double().repeat_interleave(num_groups, dim=1)
    values = torch.stack([value for _, value in seen]).double().repeat_interleave(num_groups, dim=1)
    logits = torch.einsum("hd,nhd->hn", query.double(), keys) * arguments.scale
    if arguments.softcap is not None:
        logits = arguments.softcap * torch.tanh(logits / arguments.softcap)
    if arguments.sinks is not None:
        logits = torch.cat([logits, arguments.sinks.double()[:, None]], dim=1)
    return torch.einsum("hn,nhd->hd", torch.softmax(logits, dim=1)[:, : len(seen)], values)


def check_step(
    attention: PagedAttention,
    layers: Sequence[LayerAttention],
    parts: Sequence[Part],
    num_groups: int,
    *,
    softcap: float | None,
    has_sinks: bool,
) -> None:
    """Run a step of random KV and queries on all layers, compare each token, and keep what is to be kept."""
    starts = [0, *itertools.accumulate(part.num_new for part in parts)]
    reaches = page_groups(layers)
    segments = [
        part.story.segment(reaches, start, part.num_new, part.is_branching)
        for part, start in zip(parts, starts, strict=False)
    ]
    slots: list[list[int]] = [[] for _ in reaches]
    for part in parts:
        length = part.story.length
        for group, of_group in enumerate(slots):
            last = length + (0 if part.is_branching else part.num_new)
            of_group += part.story.slots(group, length, last) or [NO_SLOT] * part.num_new
    step = attention.plan(segments, [torch.tensor(of_group) for of_group in slots])
    num_tokens = len(slots[0])
    given: dict[int, TokenKV] = {}
    for layer, shape in enumerate(layers):
        heads = shape.kv_heads * num_groups
        sinks = torch.randn(heads) if has_sinks else None
        arguments = AttentionArguments(0.3, softcap, sinks)
        queries = 3 * torch.randn(num_tokens, heads, shape.key_dim).transpose(0, 1)
        keys = torch.randn(num_tokens, shape.kv_heads, shape.key_dim).transpose(0, 1)
        values = torch.randn(num_tokens, shape.kv_heads, shape.value_dim).transpose(0, 1)
        if shape.is_latent:
            values = keys[..., : shape.value_dim]
        if shape.shares is None:
            given[layer] = keys, values
        else:
            keys, values = given[shape.shares]
        step.write(layer, keys, values)
        output = step.attend(layer, queries, keys, values, arguments)
        assert output.shape == (heads, num_tokens, shape.value_dim)
        for part, segment in zip(parts, segments, strict=True):
            kept = part.story.kv[layer]
            for token in range(segment.start, segment.end):
                own = (keys[:, token], values[:, token])
                wanted = expected(queries[:, token], [*kept, own], shape, arguments)
                torch.testing.assert_close(output[:, token].double(), wanted, atol=1e-5, rtol=1e-5)
                if not part.is_branching:
                    kept.append(own)


def shapes_for(implementation: type[PagedAttention], dtype: torch.dtype = torch.float32) -> list[LayerAttention]:
    """`SHAPES`, with latents kept as keys and values of their own where `implementation` cannot share them."""
    device = torch.device("cpu")
    shapes = [
        shape if implementation.supports([shape], dtype, device) else replace(shape, is_latent=False)
        for shape in SHAPES
    ]
    if not implementation.supports(shapes, dtype, device):
        pytest.skip(f"{implementation.__name__} does not compute in {dtype} here")
    return shapes


def pages_in_runs(generator: random.Random) -> list[int]:
    """All pages, in random runs of three adjacent ones."""
    runs = generator.sample(range(0, NUM_PAGES, 3), NUM_PAGES // 3)
    return [first + number for first in runs for number in range(3)]


def twin_of(story: Story, num_pages: int, pages: Sequence[int]) -> Story:
    """A sequence that begins with the same pages."""
    return Story([*story.pages[:num_pages], *pages], [kv[: num_pages * PAGE_SIZE] for kv in story.kv])


@pytest.mark.parametrize("implementation", ATTENTIONS)
@pytest.mark.parametrize(
    "reaches",
    [
        [Reach()],
        [Reach(window=1)],
        [Reach(window=6)],
        [Reach(chunk=1)],
        [Reach(chunk=6)],
        [Reach(), Reach(window=6), Reach(chunk=5), Reach(window=6), Reach(window=3)],
    ],
    ids=str,
)
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("has_sinks", [False, True])
@pytest.mark.parametrize("num_groups", [1, 3])
def test_every_token_attends_to_what_it_sees(
    implementation: type[PagedAttention],
    reaches: list[Reach],
    softcap: float | None,
    has_sinks: bool,
    num_groups: int,
) -> None:
    shapes = shapes_for(implementation)
    layers = [replace(shape, reach=reach) for shape, reach in zip(shapes, itertools.cycle(reaches), strict=False)]
    generator = random.Random(f"{reaches} {softcap} {has_sinks} {num_groups}")
    torch.manual_seed(generator.randrange(2**32))
    attention = implementation(
        layers,
        num_pages=[NUM_PAGES] * len(page_groups(layers)),
        page_size=PAGE_SIZE,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )

    def check(parts: list[Part]) -> None:
        generator.shuffle(parts)
        check_step(attention, layers, parts, num_groups, softcap=softcap, has_sinks=has_sinks)

    pages = pages_in_runs(generator)
    a, b, c, d, e = (Story([pages.pop() for _ in range(6)]) for _ in range(5))
    check([Part(a, 13), Part(b, 1), Part(c, 5)])
    twins = [twin_of(a, 2, [pages.pop() for _ in range(4)]), twin_of(a, 3, [pages.pop() for _ in range(3)])]
    check([Part(a, 1), Part(twins[0], 1), Part(twins[1], 1), Part(c, 1), Part(b, 6), Part(d, 7), Part(e, 2)])
    check([Part(a, 3, True), Part(b, 1, True), Part(Story([]), 2, True), Part(c, 4), Part(twins[0], 1)])
    for _ in range(2):  # decoding alone; what branched has left nothing behind
        check([Part(story, 1) for story in (a, b, c, d, *twins)])
    attention.close()


class Reserved(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the bytes of the tensors that are made."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._storages: dict[int, torch.UntypedStorage] = {}

    @property
    def num_bytes(self) -> int:
        """Bytes so far; views of a tensor take none."""
        return sum(storage.nbytes() for storage in self._storages.values())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        storage = result.untyped_storage()
        self._storages[storage.data_ptr()] = storage
        return result


@pytest.mark.parametrize("implementation", ATTENTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kv_takes_the_bytes_that_are_announced(implementation: type[PagedAttention], dtype: torch.dtype) -> None:
    shapes = shapes_for(implementation, dtype)
    reserved = Reserved()
    with reserved:
        implementation(shapes, num_pages=[100], page_size=PAGE_SIZE, dtype=dtype, device=torch.device("cpu"))
    per_page = sum(implementation.bytes_per_token(shapes, dtype)) * PAGE_SIZE
    assert 100 * per_page <= reserved.num_bytes <= 101 * per_page
