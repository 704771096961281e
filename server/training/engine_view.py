"""EngineView: the engine and tokenizer as used by training (`vectors.training.model_view.ModelView`).

Everything runs as background work through the engine's scheduler, with some hundred requests in flight, so that live
traffic keeps its pace and the engine is never idle.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

import torch
from torch import Tensor

from server.engine.errors import EngineError, OutputNotFinite
from server.engine.protocol import Engine
from server.engine.queries import (
    Activations,
    Query,
    branch,
    capture,
    capture_and_score,
    continuation,
    distributions,
    next_logprobs,
    score,
)
from server.engine.request import Capture
from server.errors import InvalidRequest
from server.steering.plan import SteeringPlan
from server.steering.resolution import plan_of_vectors
from server.text import TextProcessor
from vectors.cancellation import Cancelled
from vectors.data.items import Message
from vectors.errors import InvalidMethod, ModelFailed, ModelOverflowed
from vectors.training.model_view import Continuations, Steering
from vectors.vocabulary import Site

MAX_IN_FLIGHT = 128
MAX_BRANCHES = 480
"""The most plans that one request branches into, which bounds the rows that a search takes in the steering bank: with
those of live requests fewer than 512, to which it grows in powers of two."""

_PROMPTS_PER_ROUND = 64

_SECONDS_BETWEEN_QUESTIONS = 0.1
"""How often a view that waits for results asks whether they are still wanted."""

_Key = TypeVar("_Key")
_Result = TypeVar("_Result")


def _never() -> bool:
    return False


class EngineView:
    """`engine` and `text` as a view. Once `is_cancelled()`, it aborts its requests and raises `Cancelled`."""

    def __init__(self, engine: Engine, text: TextProcessor, is_cancelled: Callable[[], bool] = _never) -> None:
        self._engine = engine
        self._text = text
        self._is_cancelled = is_cancelled
        info = engine.info
        self.model_id = info.model_id
        self.num_layers = info.num_layers
        self.hidden_size = info.hidden_size
        self.sites = info.sites
        self.max_length = info.max_model_len
        self.has_chat_template = text.has_chat_template
        self.fingerprint = info.fingerprint
        self.dtype = info.dtype

    def encode(self, text: str) -> tuple[int, ...]:
        """See `vectors.training.model_view.ModelView.encode`."""
        self._check_cancelled()
        return tuple(self._text.encode(text))

    def encode_chat(self, messages: Sequence[Message], reply: str = "") -> tuple[int, ...]:
        """See `vectors.training.model_view.ModelView.encode_chat`."""
        self._check_cancelled()
        try:
            rendered = self._text.render_chat([{"role": turn.role, "content": turn.content} for turn in messages])
        except InvalidRequest as error:
            raise InvalidMethod(f"prompt: {error}", "prompt") from error
        return tuple(self._text.encode(rendered + reply, add_special_tokens=False))

    def activations(
        self, prompts: Iterable[tuple[int, ...]], sites: Sequence[Site]
    ) -> Iterator[tuple[int, Mapping[Site, Tensor]]]:
        """See `vectors.training.model_view.ModelView.activations`."""
        layers = range(self.num_layers)
        work = Capture(tuple(layers), tuple(sites))

        def begin(prompt: tuple[int, ...]) -> Query[Activations]:
            return capture(self._engine, prompt, work)

        for index, found in self._stream(enumerate(prompts), begin):
            yield index, _by_site(found, work)

    def answers(
        self, prompts: Sequence[tuple[int, ...]], token_ids: Sequence[tuple[int, ...]], sites: Sequence[Site]
    ) -> Iterator[tuple[int, tuple[Tensor, Mapping[Site, Tensor]]]]:
        """See `vectors.training.model_view.ModelView.answers`."""
        work = Capture(tuple(range(self.num_layers)), tuple(sites))

        def begin(question: tuple[tuple[int, ...], tuple[int, ...]]) -> Query[tuple[Activations, Tensor]]:
            prompt, wanted = question
            return capture_and_score(self._engine, prompt, replace(work, token_ids=wanted))

        for index, (found, logprobs) in self._stream(enumerate(zip(prompts, token_ids, strict=True)), begin):
            yield index, (logprobs, _by_site(found, work))

    def next_token_logits(
        self,
        prompts: Sequence[tuple[int, ...]],
        token_ids: Sequence[tuple[int, ...]],
        steerings: Sequence[tuple[Steering, ...]],
    ) -> Iterator[tuple[int, Tensor]]:
        """See `vectors.training.model_view.ModelView.next_token_logits`."""
        plans = [self._plan_of(steering) for steering in steerings]
        if len(plans) == 1:
            asked = zip(prompts, token_ids, strict=True)

            def ask(question: tuple[tuple[int, ...], tuple[int, ...]]) -> Query[Tensor]:
                return next_logprobs(self._engine, *question, plan=plans[0])

            for index, logprobs in self._stream(enumerate(asked), ask):
                yield index, logprobs.unsqueeze(0)
            return
        groups = _groups_of(plans)
        branches = [tuple(plans[member] for member in group) for group in groups]
        order = torch.tensor([number for group in groups for number in group])
        rounds = range(0, len(prompts), _PROMPTS_PER_ROUND)
        tasks = (
            ((index, number), (index, number))
            for first in rounds
            for number in range(len(groups))
            for index in range(first, min(first + _PROMPTS_PER_ROUND, len(prompts)))
        )

        def begin(task: tuple[int, int]) -> Query[Tensor]:
            index, number = task
            return branch(self._engine, prompts[index], token_ids[index], branches[number])

        found: dict[int, dict[int, Tensor]] = {}
        for (index, number), scores in self._stream(tasks, begin):
            parts = found.setdefault(index, {})
            parts[number] = scores
            if len(parts) == len(groups):
                scores = torch.cat([parts[other] for other in range(len(groups))])
                yield index, torch.empty_like(scores).index_copy_(0, order, scores)
                del found[index]

    def continuation_logprobs(
        self, queries: Iterable[Continuations]
    ) -> Iterator[tuple[int, tuple[tuple[float, ...], ...]]]:
        """See `vectors.training.model_view.ModelView.continuation_logprobs`."""

        def begin(query: Continuations) -> Query[list[tuple[float, ...]]]:
            return score(self._engine, query.prompt, query.choices, plan=self._plan_of(query.steering))

        for index, found in self._stream(enumerate(queries), begin):
            yield index, tuple(found)

    def greedy(
        self, prompts: Sequence[tuple[int, ...]], max_tokens: int, steering: tuple[Steering, ...]
    ) -> Iterator[tuple[int, tuple[int, ...]]]:
        """See `vectors.calibration.view.CalibratedModel.greedy`."""
        plan = self._plan_of(steering)

        def begin(prompt: tuple[int, ...]) -> Query[tuple[int, ...]]:
            return continuation(self._engine, prompt, max_tokens, plan=plan)

        yield from self._stream(enumerate(prompts), begin)

    def distributions(
        self, texts: Sequence[tuple[tuple[int, ...], tuple[int, ...]]], steering: tuple[Steering, ...]
    ) -> Iterator[tuple[int, Tensor]]:
        """See `vectors.calibration.view.CalibratedModel.distributions`."""
        plan = self._plan_of(steering)

        def begin(text: tuple[tuple[int, ...], tuple[int, ...]]) -> Query[Tensor]:
            return distributions(self._engine, *text, plan=plan)

        yield from self._stream(enumerate(texts), begin)

    def token_activations(
        self, texts: Sequence[tuple[int, ...]], site: Site, layers: tuple[int, ...]
    ) -> Iterator[tuple[int, Mapping[int, Tensor]]]:
        """See `vectors.calibration.view.CalibratedModel.token_activations`."""

        def begin(text: tuple[int, ...]) -> Query[Any]:
            return capture(self._engine, text, Capture(layers, (site,), tuple(range(len(text)))))

        for index, found in self._stream(enumerate(texts), begin):
            yield index, {layer: found[site, layer] for layer in layers}

    def _plan_of(self, steering: Sequence[Steering]) -> SteeringPlan:
        return plan_of_vectors(((entry.vector, entry.scale) for entry in steering), self._engine.info)

    def _stream(
        self, tasks: Iterable[tuple[_Key, Any]], begin: Callable[[Any], Query[_Result]]
    ) -> Iterator[tuple[_Key, _Result]]:
        """Results of `begin(task)` as they arrive, with a bounded number in flight."""
        finished: SimpleQueue[tuple[_Key, Future[_Result]]] = SimpleQueue()
        under_way: dict[_Key, Query[_Result]] = {}
        waiting = iter(tasks)
        is_exhausted = False
        try:
            while True:
                while not is_exhausted and len(under_way) < MAX_IN_FLIGHT:
                    self._check_cancelled()
                    task = next(waiting, None)
                    if task is None:
                        is_exhausted = True
                        break
                    key, content = task
                    under_way[key] = self._begin(begin, content)
                    under_way[key].add_done_callback(functools.partial(_put, finished, key))
                if not under_way:
                    return
                key, future = self._next(finished)
                del under_way[key]
                try:
                    result = future.result()
                except EngineError as error:
                    raise self._failure(error) from error
                yield key, result
        finally:
            for query in under_way.values():
                query.abort()

    def _next(self, finished: SimpleQueue[_Result]) -> _Result:
        while True:
            self._check_cancelled()
            try:
                return finished.get(timeout=_SECONDS_BETWEEN_QUESTIONS)
            except Empty:
                continue

    def _check_cancelled(self) -> None:
        if self._is_cancelled():
            raise Cancelled

    def _begin(self, begin: Callable[[Any], Query[_Result]], content: Any) -> Query[_Result]:
        try:
            return begin(content)
        except EngineError as error:
            raise self._failure(error) from error

    def _failure(self, error: EngineError) -> Exception:
        if self._is_cancelled():
            return Cancelled()
        return ModelOverflowed(str(error)) if isinstance(error, OutputNotFinite) else ModelFailed(str(error))


def _put(finished: SimpleQueue[tuple[_Key, Future[_Result]]], key: _Key, future: Future[_Result]) -> None:
    finished.put((key, future))


def _by_site(found: Activations, work: Capture) -> dict[Site, Tensor]:
    """The activations at one position, `[layers, hidden]` by site."""
    return {site: torch.cat([found[site, layer] for layer in work.layers]) for site in work.sites}


def _groups_of(plans: Sequence[SteeringPlan]) -> list[list[int]]:
    """The numbers of plans, grouped so that one request can branch into each group: alike before the last prompt token,
    and not too many.
    """
    alike: dict[bytes, list[int]] = {}
    for number, plan in enumerate(plans):
        alike.setdefault(plan.prompt_fingerprint, []).append(number)
    return [
        members[first : first + MAX_BRANCHES]
        for members in alike.values()
        for first in range(0, len(members), MAX_BRANCHES)
    ]
