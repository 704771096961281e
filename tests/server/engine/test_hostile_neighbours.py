"""Whatever others ask for, a request gets what it gets alone, and no step is lost.

Hostile requests of every kind, drawn at random, beside witnesses on every path.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from server.engine.engine import BatchingEngine
from server.engine.errors import RequestRefused
from server.engine.request import (
    Branch,
    Capture,
    EngineRequest,
    FinishReason,
    Force,
    Generate,
    Priority,
    SamplingParams,
    Score,
    TokenOutput,
    Work,
)
from server.steering.plan import UNSTEERED, PlanEntry, SteeringPlan
from tests.families import HIDDEN, LAYERS, VOCABULARY
from tests.reference import Steer
from tests.server.engine.driving import (
    GREEDY,
    assert_nothing_held,
    engine_of,
    loaded,
    plan_of,
    prompt_of,
    random_direction,
    run,
    tokens_of,
)
from tests.server.engine.grammars import EVEN, exactly
from tests.server.engine.parts import STEERINGS, Parts
from vectors.applied import AppliedVector
from vectors.vocabulary import PARTS

ADD = plan_of(Steer(random_direction(1), 1))
LOW_RANK = plan_of(
    Steer(random_direction(2), 0, operation="ablate", positions="all"),
    Steer(random_direction(3), 2, "mlp", operation="clamp"),
    Steer(random_direction(4), 1, preserve_norm=True),
)
BRANCHES = (UNSTEERED, ADD, plan_of(Steer(random_direction(5), 2, operation="ablate")))

WITNESSES = {
    "greedy": EngineRequest("greedy", prompt_of(23), Generate(20, GREEDY)),
    "sampled": EngineRequest("sampled", prompt_of(9), Generate(20, SamplingParams(temperature=0.9, top_p=0.9, seed=1))),
    "free": EngineRequest("free", prompt_of(23), Generate(20, SamplingParams(seed=2, presence_penalty=0.5))),
    "steered": EngineRequest("steered", prompt_of(12), Generate(20, GREEDY, num_logprobs=2), ADD),
    "low-rank": EngineRequest("low-rank", prompt_of(12), Generate(20, GREEDY), LOW_RANK),
    "constrained": EngineRequest(
        "constrained", prompt_of(7), Generate(20, SamplingParams(temperature=1.0, seed=3), grammar=EVEN), ADD
    ),
    "parts": EngineRequest(
        "parts", prompt_of(11), Generate(20, GREEDY, parts=Parts()), plan_of(*STEERINGS["two vectors, two parts"])
    ),
    "branches": EngineRequest("branches", prompt_of(23), Branch(BRANCHES, (3, 50, 7)), priority=Priority.BACKGROUND),
    "scored": EngineRequest("scored", prompt_of(23), Score((4, 5), (6, 7)), LOW_RANK, priority=Priority.BACKGROUND),
    "captured": EngineRequest("captured", prompt_of(8), Capture((0, 2), ("residual", "mlp"), (0, -1)), LOW_RANK),
}

NUMBERS = (0.0, 1e-38, 1e-5, 0.5, 1.0, 2.0, 1e5, 1e30, 1e38, 1e300, torch.inf)


class Breaking:
    """A grammar, and a reader of parts, that raises after some tokens."""

    part = "content"
    is_complete = False

    def __init__(self, after: int) -> None:
        self._left = after

    def start(self) -> Breaking:
        return Breaking(self._left)

    def fill_mask(self, words: torch.Tensor) -> None:
        if self._left == 0:
            raise GeneratorExit("a panic")
        words.fill_(-1)

    def accept(self, token_id: int) -> None:
        self._left -= 1
        if self._left < 0:
            raise ValueError("a bug")


@dataclass
class Hostile:
    """Draws hostile requests."""

    choose: random.Random
    number: int = 0

    def request(self) -> EngineRequest:
        """The next one; it may be refused."""
        self.number += 1
        choose = self.choose
        prompt = choose.choice([choose.choice(list(WITNESSES.values())).prompt, prompt_of(choose.randrange(80), 1)])
        priority = choose.choice(list(Priority))
        return EngineRequest(f"hostile {self.number}", prompt, self._work(len(prompt)), self._plan(), priority)

    def _work(self, num_prompt: int) -> Work:
        choose = self.choose
        tokens = tuple(choose.randrange(VOCABULARY) for _ in range(choose.randrange(1, 9)))
        place = choose.randrange(-num_prompt - 1, num_prompt + 1)
        odd: list[Callable[[], Work]] = [
            lambda: Force(tokens, choose.randrange(-1, num_prompt + 9), choose.choice([0, 5, 10**6])),
            lambda: Score(tokens, tokens),
            lambda: Branch(tuple(self._plan() for _ in range(choose.choice([1, 3, 70]))), tokens),
            lambda: Capture(tuple(range(choose.randrange(LAYERS + 2))), ("residual", "attention"), (place, 0)),
        ]
        return choose.choice(odd)() if choose.random() < 0.3 else self._generate()

    def _generate(self) -> Generate:
        choose = self.choose
        grammar: Any = choose.choice([None, None, EVEN, exactly(4, 6), Breaking(choose.randrange(4))])
        parts: Any = choose.choice([None, None, Parts(), Breaking(choose.randrange(4))])
        length = choose.choice([-1, 0, 1, 2, 5, 40, 170, 10**9])
        return Generate(length, self._sampling(), choose.choice([None, 0, 3, 10**6]), grammar, parts)

    def _sampling(self) -> SamplingParams:
        choose = self.choose
        some = choose.sample(range(VOCABULARY), choose.choice([0, 0, 1, VOCABULARY - 1, VOCABULARY]))
        biases = choose.choice([(-torch.inf,), (torch.inf,), (-1e38, 1e38), (-100.0, 100.0)])
        return SamplingParams(
            temperature=choose.choice(NUMBERS),
            top_p=choose.choice([0.0, 1e-300, 0.5, 1.0, 1.0]),
            top_k=choose.choice([-1, 0, 0, 1, 7, 10**12]),
            min_p=choose.choice([0.0, 0.0, 1e-300, 0.5, 1.0]),
            seed=choose.choice([None, 0, -1, 2**200]),
            repetition_penalty=choose.choice([1.0, 1.0, *NUMBERS]),
            presence_penalty=choose.choice([0.0, 0.0, 1e38, -torch.inf]),
            frequency_penalty=choose.choice([0.0, 0.0, 1e38, torch.inf]),
            logit_bias={token: choose.choice(biases) for token in some} if choose.random() < 0.3 else {},
            stop_token_ids=frozenset(some) if choose.random() < 0.5 else frozenset(),
            min_tokens=choose.choice([0, 0, 1, 3, 10**9]),
        )

    def _plan(self) -> SteeringPlan:
        choose = self.choose
        if choose.random() < 0.4:
            return UNSTEERED
        return SteeringPlan([self._entry() for _ in range(choose.choice([1, 1, 2, 9]))])

    def _entry(self) -> PlanEntry:
        choose = self.choose
        length = choose.choice([1.0, 1e-30, 1e30, torch.inf, torch.nan])
        applied = AppliedVector(
            site=choose.choice(["residual", "attention", "mlp"]),
            layers=tuple(range(choose.randrange(1, LAYERS + 1))),
            scale=choose.choice([1, -1]) * choose.choice(NUMBERS),
            positions=choose.choice(["prompt", "response", "all"]),
            operation=choose.choice(["add", "ablate", "clamp"]),
            preserve_norm=choose.random() < 0.3,
            directions=dict.fromkeys(range(LAYERS), torch.full((HIDDEN,), length)),
        )
        return PlanEntry("hostile", str(length), applied, PARTS)


@dataclass
class Round:
    """The witnesses, again and again: each is asked anew as soon as it has ended, and held against itself alone."""

    engine: BatchingEngine
    expected: dict[str, list[TokenOutput]]
    events: dict[str, list[TokenOutput]] = field(default_factory=dict)
    num_held: int = 0

    def ask_again(self) -> None:
        """Compare those that have ended, and ask them anew."""
        for name, request in WITNESSES.items():
            if name in self.events and self.events[name][-1:] and self.events[name][-1].finish_reason is not None:
                self.compare(name)
            if name not in self.events:
                events = self.events[name] = []
                self.engine.submit(request, events.append)

    def compare(self, name: str) -> None:
        """Hold a witness that has ended against itself alone."""
        events, expected = self.events.pop(name), self.expected[name]
        assert events[-1].finish_reason is expected[-1].finish_reason, (name, events[-1].error)
        assert tokens_of(events) == tokens_of(expected), name
        for event, wanted in zip(events, expected, strict=True):
            if wanted.logprobs is not None:
                assert event.logprobs is not None
                assert [token for token, _ in event.logprobs.top] == [token for token, _ in wanted.logprobs.top]
                assert event.logprobs.logprob == pytest.approx(wanted.logprobs.logprob, abs=1e-4)
        torch.testing.assert_close(events[-1].branch_logits, expected[-1].branch_logits, atol=1e-4, rtol=1e-4)
        if expected[-1].scores is not None:
            assert events[-1].scores is not None
            torch.testing.assert_close(
                torch.tensor(events[-1].scores), torch.tensor(expected[-1].scores), atol=1e-4, rtol=1e-4
            )
        torch.testing.assert_close(events[-1].activations, expected[-1].activations, atol=1e-4, rtol=1e-4)
        self.num_held += 1


@pytest.mark.parametrize(
    ("seed", "num_hostile"),
    [(0, 250), pytest.param(1, 5000, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])],
)
@pytest.mark.parametrize("family", ["llama"])
def test_every_witness_is_itself_beside_hostile_requests(family: str, seed: int, num_hostile: int) -> None:
    choose = random.Random(seed)
    model = loaded(family)
    expected = {}
    for name, request in WITNESSES.items():
        engine = engine_of(model)
        expected.update({name: run(engine, [request])[name]})
        engine.close()
    engine = engine_of(model, max_running=24, num_pages=200, max_queue=100)
    witnesses = Round(engine, expected)
    hostile = Hostile(choose)
    under_way: dict[str, FinishReason | None] = {}
    num_refused = 0

    def receive(output: TokenOutput) -> None:
        under_way[output.request_id] = output.finish_reason

    while hostile.number < num_hostile:
        witnesses.ask_again()
        under_way = {name: reason for name, reason in under_way.items() if reason is None}
        while len(under_way) < 30 and hostile.number < num_hostile:
            request = hostile.request()
            try:
                under_way[request.request_id] = None
                engine.submit(request, receive)
            except RequestRefused:
                del under_way[request.request_id]
                num_refused += 1
        for name in [name for name in under_way if choose.random() < 0.02]:
            engine.abort(name)
        engine.step()
    while engine.step():
        pass
    for name in list(witnesses.events):
        witnesses.compare(name)
    stats = engine.stats()
    print(f"\n{num_hostile} hostile requests, {num_refused} refused; {witnesses.num_held} witnesses as alone; ", end="")
    print(f"{stats.total_steps} steps, {stats.total_failed_steps} lost")
    assert stats.total_failed_steps == 0
    assert num_refused < 0.6 * num_hostile
    assert witnesses.num_held > len(WITNESSES)
    assert_nothing_held(engine)
    engine.close()
