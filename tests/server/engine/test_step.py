"""A step's arrays equal what a slow loop over tokens says, for any mix of chunks."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest
import torch

from server.engine.attention.interface import NO_SLOT, Reach
from server.engine.buffers import StepBuffers
from server.engine.kv_pages import KVPages
from server.engine.request import Branch, Capture, EngineRequest, Force, Generate
from server.engine.scheduler import Chunk
from server.engine.sequence import TokenSequence
from server.engine.step import StepBatch, pack_step
from server.steering.bank import SteeringBank
from server.steering.plan import UNSTEERED, SteeringPlan
from tests.families import HIDDEN, LAYERS
from tests.reference import Steer
from tests.server.engine.driving import plan_of, prompt_of, random_direction
from vectors.vocabulary import PARTS, Part, Place

PAGE_SIZE = 4
NUM_PAGES = 120
CPU = torch.device("cpu")
STEERED = (
    plan_of(Steer(random_direction(1), 0)),
    plan_of(Steer(random_direction(2), 1, positions="prompt"), Steer(random_direction(3), 1, parts=("tool_calls",))),
    plan_of(Steer(random_direction(4), 2, positions="all", operation="ablate")),
    UNSTEERED,
)
CAPTURE = Capture(layers=(0, 2), sites=("residual", "mlp"), positions=(0, 2, 5, -1))
Plans = Sequence[SteeringPlan]
Kind = Callable[[tuple[int, ...], Plans], EngineRequest]


class CyclingParts:
    """A reader of parts, and its state: each token begins another part."""

    def __init__(self) -> None:
        self._number = 0

    def start(self) -> CyclingParts:
        return CyclingParts()

    @property
    def part(self) -> Part:
        return PARTS[self._number % len(PARTS)]

    def accept(self, token_id: int) -> None:
        self._number += 1


def generating(prompt: tuple[int, ...], plans: Plans) -> EngineRequest:
    return EngineRequest("generating", prompt, Generate(20), plans[0])


def generating_in_parts(prompt: tuple[int, ...], plans: Plans) -> EngineRequest:
    return EngineRequest("parts", prompt, Generate(20, parts=CyclingParts()), plans[0])


def forcing(prompt: tuple[int, ...], plans: Plans) -> EngineRequest:
    return EngineRequest("forcing", prompt[:4], Force(prompt[4:], start=2), plans[0])


def capturing(prompt: tuple[int, ...], plans: Plans) -> EngineRequest:
    return EngineRequest("capturing", prompt, CAPTURE, plans[0])


def branching(prompt: tuple[int, ...], plans: Plans) -> EngineRequest:
    return EngineRequest("branching", prompt, Branch(tuple(plans), (1,)), plans[0])


KINDS: tuple[Kind, ...] = (generating, generating_in_parts, forcing, capturing, branching)


def kv_pages() -> KVPages:
    """Pages for layers that see everything and for layers with a window."""
    return KVPages((Reach(), Reach(window=6)), (NUM_PAGES, NUM_PAGES), PAGE_SIZE, max_chunk=32)


@dataclass
class Life:
    """A request in the engine's hands, and what it was already given."""

    kind: Kind
    sequence: TokenSequence
    given: set[int] = field(default_factory=set)
    num_branches_done: int = 0

    def advance(self, chunk: Chunk, token: int) -> None:
        """What the engine does after a step."""
        sequence, first = self.sequence, self.sequence.num_computed
        if self.kind is branching and sequence.is_branching:
            self.num_branches_done += chunk.num_new
            sequence.branches.add(torch.zeros(chunk.num_new, 1))
            return
        done = set(range(first, first + chunk.num_new))
        if self.kind is forcing:
            sequence.known_logprobs += [None] * len((done - self.given) & set(range(1, sequence.num_known - 1)))
        if self.kind is capturing:
            for place in sequence.capture_places:
                found = {position: torch.empty(0) for position in done & set(sequence.capture_positions)}
                sequence.activations.setdefault(place, {}).update(found)
        self.given |= done
        is_last = chunk.is_last
        sequence.advance(chunk.num_new)
        if is_last and self.kind in (generating, generating_in_parts):
            sequence.append(token)


@dataclass
class Expected:
    """What `pack_step` gives, by one loop over tokens."""

    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    slots: tuple[list[int], ...] = field(default_factory=lambda: ([], []))
    rows: list[int] = field(default_factory=list)
    wanted: list[int] = field(default_factory=list)
    captures: dict[Place, list[int]] = field(default_factory=dict)

    def add(self, life: Life, num_new: int) -> None:
        """The next tokens of one request."""
        kind, sequence, rows = life.kind, life.sequence, life.sequence.rows
        assert rows is not None
        boundary = sequence.num_prompt - 1
        for number in range(num_new):
            is_branch = kind is branching and sequence.num_computed == boundary
            position = boundary if is_branch else sequence.num_computed + number
            part = PARTS[max(0, position - boundary) % len(PARTS)] if kind is generating_in_parts else "content"
            is_end = position == len(sequence.tokens) - 1
            is_news = position not in life.given
            index = len(self.tokens)
            self.tokens.append(sequence.tokens[position])
            self.positions.append(position)
            if is_branch:
                for slots in self.slots:
                    slots.append(NO_SLOT)
                self.rows.append(rows.branches[life.num_branches_done + number])
            else:
                for slots, table in zip(self.slots, sequence.pages.tables, strict=True):
                    page = table.pages[position // PAGE_SIZE - table.first]
                    slots.append(page * PAGE_SIZE + position % PAGE_SIZE)
                scope = sequence.request.plan.scope_at(position, boundary + 1, part)
                self.rows.append(rows.by_scope[scope])
            tells_known = kind is forcing and position >= 1 and not is_end and is_news
            tells_next = kind in (generating, generating_in_parts) and is_end
            if is_branch or tells_known or tells_next:
                self.wanted.append(index)
            if kind is capturing and is_news and (position in (0, 2, 5) or is_end):
                for site in CAPTURE.sites:
                    for layer in CAPTURE.layers:
                        self.captures.setdefault((site, layer), []).append(index)


def check(batch: StepBatch, expected: Expected, bank: SteeringBank) -> None:
    assert batch.tokens.tolist() == expected.tokens
    assert batch.positions.tolist() == expected.positions
    assert [slots.tolist() for slots in batch.slots] == list(expected.slots)
    assert batch.wanted.tolist() == expected.wanted
    assert {place: tokens.tolist() for place, tokens in batch.captures.items()} == expected.captures
    rows = None if batch.row_of_token is None else batch.row_of_token.tolist()
    assert rows == (expected.rows if any(expected.rows) else None)
    with_slots = [token for token, row in enumerate(expected.rows) if bank.has_slots(row)]
    assert (None if batch.slot_tokens is None else batch.slot_tokens.tolist()) == (with_slots or None)
    packed = [token for segment in batch.segments for token in range(segment.start, segment.end)]
    assert packed == list(range(len(expected.tokens)))
    assert [token for chunk in batch.chunks for token in chunk.wanted] == expected.wanted


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("plans", [STEERED, (UNSTEERED, UNSTEERED)], ids=["steered", "unsteered"])
def test_any_mix_of_chunks_is_packed_as_a_loop_over_tokens_says(plans: Plans, seed: int) -> None:
    generator = random.Random(seed)
    kv = kv_pages()
    bank = SteeringBank(LAYERS, HIDDEN, CPU)
    lives = []
    for number, kind in enumerate(2 * KINDS):
        own = generator.sample(plans, len(plans))
        request = kind(prompt_of(generator.randint(7, 25), seed=number), own)
        sequence = TokenSequence(request, lambda output: None, frozenset(), kv)
        sequence.rows = bank.acquire(sequence.zones, tuple(own) if kind is branching else ())
        lives.append(Life(kind, sequence))
    for _ in range(20):
        expected = Expected()
        step: list[tuple[Life, Chunk]] = []
        for life in generator.sample(lives, generator.randint(1, len(lives))):
            if life.sequence.num_to_compute == 0:
                continue
            if generator.random() < 0.1:  # preempted: what was given once is not wanted again
                life.sequence.release_pages()
            num_new = generator.randint(1, life.sequence.max_chunk)
            assert life.sequence.reserve(num_new)
            expected.add(life, num_new)
            step.append((life, Chunk(life.sequence, num_new)))
        if not step:
            continue
        check(pack_step([chunk for _, chunk in step], bank), expected, bank)
        for life, chunk in step:
            life.advance(chunk, token=generator.randrange(101))


def test_a_steps_tensors_stay_where_they_are() -> None:
    bank = SteeringBank(LAYERS, HIDDEN, CPU)
    kv = kv_pages()
    buffers = StepBuffers(32, 2, CPU)
    addresses = set()
    for length in (32, 7, 19):
        prompt = prompt_of(length)
        sequence = TokenSequence(generating(prompt, STEERED), lambda output: None, frozenset(), kv)
        sequence.rows = bank.acquire(STEERED[2].zones(length))
        sequence.reserve(length)
        batch = pack_step([Chunk(sequence, length)], bank)
        inputs = buffers.write(batch)
        arrays = [
            *(
                (name, getattr(inputs, name), getattr(batch, name))
                for name in ("tokens", "positions", "wanted", "row_of_token", "slot_tokens")
            ),
            *((f"slots {group}", inputs.slots[group], batch.slots[group]) for group in range(2)),
        ]
        for name, tensor, array in arrays:
            assert tensor.dtype == torch.int64
            assert tensor.tolist() == array.tolist(), name
            addresses.add((name, tensor.data_ptr()))
    assert len({address for _, address in addresses}) == len(addresses) == 7
