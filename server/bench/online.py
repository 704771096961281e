"""Speed of a running server, as its clients see it: streamed chats over HTTP, of any server with OpenAI's API.

A **load** says how requests arrive. In a closed loop a number of clients each send the next request when the last one
has ended. In an open loop requests arrive at random moments (a Poisson process) whatever the server does, so that
queues show: a request's time to its first token counts from the moment at which it was due. Repeats of all loads are
interleaved. Prompts are random words, so that only what is meant to be shared is found in a prefix cache.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import httpx

from server.bench.spread import Spread, percentile

SHARES = (0.5, 0.95, 0.99)
"""The percentiles of each latency."""

_REQUESTS_OF_A_CLIENT = 2
_REQUESTS_OF_A_RATE = 32

_WORDS = re.findall(
    r"\w+",
    """
    air arm art bad bag ball band bank base bath bed bell big bird blue boat body book box boy
    bus call car card case cat cold cook cool corn cow cup cut dark day deal deep desk dog door
    down draw dry ear east egg end eye face fact fall farm fast fire fish food foot game gate girl
    """,
)


@dataclass(frozen=True, slots=True)
class Load:
    """How requests arrive, and the vectors that steer them in turn (none: unsteered).

    `clients`: of a closed loop; `rate`: requests a second of an open one. Exactly one of them is given.
    """

    clients: int | None
    rate: float | None
    vectors: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """For tables: `8 clients`, `2.5 a second`."""
        return f"{self.rate:g} a second" if self.clients is None else f"{self.clients} clients"


@dataclass(frozen=True, slots=True)
class Requests:
    """What each request of a measurement asks for.

    `number`: of requests; None: two for each client of a closed loop, 32 of an open one. `prompt_words`: words of a
    prompt, of which the first `shared_words` are those of all others. `body`: fields that are added to each request.
    Answers do not end before `new_tokens` tokens on servers that know `ignore_eos`.
    """

    model: str
    number: int | None
    prompt_words: int
    shared_words: int
    new_tokens: int
    body: Mapping[str, Any] = field(default_factory=dict)

    def number_for(self, load: Load) -> int:
        """How many requests one measurement of `load` sends."""
        if self.number is not None:
            return self.number
        return _REQUESTS_OF_A_RATE if load.clients is None else _REQUESTS_OF_A_CLIENT * load.clients

    def body_of(self, prompt: str, vector: str | None) -> dict[str, Any]:
        """The body of one request."""
        steering = {} if vector is None else {"steering": [{"vector": vector}]}
        return {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": self.new_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
            **steering,
            **self.body,
        }


@dataclass(slots=True)
class Answered:
    """One request: when its pieces of text came, in seconds after it was due, and what the server counted."""

    pieces: list[float] = field(default_factory=list)
    num_tokens: int = 0
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement of a load: all its requests, and the seconds from the first one to the end of the last."""

    answered: Sequence[Answered]
    seconds: float

    @property
    def whole(self) -> list[Answered]:
        """Those that were answered."""
        return [one for one in self.answered if one.error is None and one.pieces]

    @property
    def tokens_per_second(self) -> float:
        """Of all answers together."""
        return sum(one.num_tokens for one in self.whole) / self.seconds

    @property
    def first(self) -> list[float]:
        """Seconds to the first piece of each answer."""
        return [one.pieces[0] for one in self.whole]

    @property
    def between(self) -> list[float]:
        """Seconds between pieces of an answer, of all answers."""
        return [after - before for one in self.whole for before, after in zip(one.pieces, one.pieces[1:], strict=False)]


@dataclass(frozen=True, slots=True)
class OnlineFigure:
    """A load's figures over its repeats. Latencies are in seconds, one spread for each of `SHARES`.

    `first`, `between`: to the first piece of an answer, and between its pieces; empty if nothing was answered.
    `tokens_per_piece`: above 1, the server sends several tokens at a time. `ratio`: tokens a second to those of the
    unsteered load that arrives alike, repeat by repeat; None for that.
    """

    load: Load
    num_requests: int
    errors: Mapping[str, int]
    tokens_per_second: Spread
    first: tuple[Spread, ...]
    between: tuple[Spread, ...]
    tokens_per_piece: float
    prompt_tokens: float
    cached_share: float
    ratio: Spread | None

    def to_json(self) -> dict[str, Any]:
        """Everything by name."""
        return asdict(self)


class Client:
    """Streams chats from one server. Use as an asynchronous context. Raises what httpx raises for a bad URL."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._http = httpx.AsyncClient(**settings, limits=httpx.Limits(max_connections=None))

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self._http.aclose()

    async def first_model(self) -> str:
        """The first model that the server lists. Raises `httpx.HTTPError`, and `LookupError` where there is none."""
        response = (await self._http.get("/v1/models")).raise_for_status()
        models = response.json().get("data") or []
        if not models:
            raise LookupError("the server lists no model")
        return str(models[0]["id"])

    async def answer(self, body: Mapping[str, Any], due: float) -> Answered:
        """Send one request and read its answer to the end; failures are noted in the result."""
        found = Answered()
        try:
            async with self._http.stream("POST", "/v1/chat/completions", json=body) as response:
                if not response.is_success:
                    found.error = f"{response.status_code}: {_message_in(await response.aread())}"
                    return found
                async for event in _events(response):
                    _note(found, event, time.perf_counter() - due)
        except httpx.HTTPError as error:
            found.error = type(error).__name__
        if found.error is None and not found.num_tokens:
            found.num_tokens = len(found.pieces)  # the server counts nothing: a piece is a token
        return found


async def measure(client: Client, load: Load, requests: Requests, seed: int) -> Sample:
    """Run a load once, on prompts that no other seed or load shares (but for the words that are meant to be)."""
    generator = random.Random(f"{seed} {load}")
    shared = random.Random(0).choices(_WORDS, k=requests.shared_words)
    bodies = [
        requests.body_of(
            " ".join([*shared, *generator.choices(_WORDS, k=requests.prompt_words - requests.shared_words)]),
            load.vectors[number % len(load.vectors)] if load.vectors else None,
        )
        for number in range(requests.number_for(load))
    ]
    started = time.perf_counter()
    if load.clients is None:
        assert load.rate is not None
        gaps = [generator.expovariate(load.rate) for _ in bodies]
        answered = await _open_loop(client, bodies, gaps, started)
    else:
        answered = await _closed_loop(client, bodies, load.clients)
    return Sample(answered, time.perf_counter() - started)


async def _open_loop(
    client: Client, bodies: Sequence[Mapping[str, Any]], gaps: Sequence[float], started: float
) -> list[Answered]:
    async with asyncio.TaskGroup() as group:
        tasks, due = [], started
        for body, gap in zip(bodies, gaps, strict=True):
            due += gap
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            tasks.append(group.create_task(client.answer(body, due)))
    return [task.result() for task in tasks]


async def _closed_loop(client: Client, bodies: Sequence[Mapping[str, Any]], num_clients: int) -> list[Answered]:
    waiting, answered = iter(bodies), []

    async def one_client() -> None:
        for body in waiting:
            answered.append(await client.answer(body, time.perf_counter()))

    async with asyncio.TaskGroup() as group:
        for _ in range(num_clients):
            group.create_task(one_client())
    return answered


async def run_online(
    client: Client, loads: Sequence[Load], requests: Requests, repeats: int, advance: Callable[[], None] = lambda: None
) -> list[OnlineFigure]:
    """Measure `loads`, after one round that warms up; `advance` is called after each measurement.

    Each way of arriving is among the loads unsteered.
    """
    samples: dict[Load, list[Sample]] = {load: [] for load in loads}
    for repeat in range(repeats + 1):
        for load in loads:
            sample = await measure(client, load, requests, repeat)
            if repeat:
                samples[load].append(sample)
            advance()
    return [_figure(load, samples) for load in loads]


def _figure(load: Load, samples: Mapping[Load, Sequence[Sample]]) -> OnlineFigure:
    own = samples[load]
    answered = [one for sample in own for one in sample.answered]
    whole = [one for sample in own for one in sample.whole]
    errors: dict[str, int] = {}
    for one in answered:
        if one.error is not None:
            errors[one.error] = errors.get(one.error, 0) + 1
    ratio = None
    if load.vectors:
        plain = samples[Load(load.clients, load.rate)]
        pairs = [
            (steered.tokens_per_second, unsteered.tokens_per_second)
            for steered, unsteered in zip(own, plain, strict=True)
        ]
        if all(unsteered for _, unsteered in pairs):
            ratio = Spread.of([steered / unsteered for steered, unsteered in pairs])
    num_prompt_tokens = sum(one.num_prompt_tokens for one in whole)
    return OnlineFigure(
        load=load,
        num_requests=len(answered),
        errors=errors,
        tokens_per_second=Spread.of([sample.tokens_per_second for sample in own]),
        first=_latencies([sample.first for sample in own]),
        between=_latencies([sample.between for sample in own]),
        tokens_per_piece=sum(one.num_tokens for one in whole) / max(1, sum(len(one.pieces) for one in whole)),
        prompt_tokens=num_prompt_tokens / max(1, len(whole)),
        cached_share=sum(one.num_cached_tokens for one in whole) / max(1, num_prompt_tokens),
        ratio=ratio,
    )


def _latencies(repeats: Sequence[Sequence[float]]) -> tuple[Spread, ...]:
    measured = [values for values in repeats if values]
    if not measured:
        return ()
    return tuple(Spread.of([percentile(values, share) for values in measured]) for share in SHARES)


async def _events(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    """The JSON objects of a stream of server-sent events, until `[DONE]`."""
    rest = b""
    async for received in response.aiter_raw():
        *lines, rest = (rest + received).split(b"\n")
        for line in lines:
            data = line.removeprefix(b"data:").strip()
            if line.startswith(b"data:") and data != b"[DONE]":
                yield json.loads(data)


def _note(found: Answered, event: Mapping[str, Any], moment: float) -> None:
    if "error" in event:
        found.error = _message_in(json.dumps(event).encode())
    for choice in event.get("choices") or ():
        delta = choice.get("delta") or {}
        if delta.get("content") or delta.get("reasoning_content") or delta.get("reasoning"):
            found.pieces.append(moment)
    usage = event.get("usage")
    if usage:
        found.num_tokens = usage["completion_tokens"]
        found.num_prompt_tokens = usage["prompt_tokens"]
        found.num_cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0


def _message_in(body: bytes) -> str:
    """What an error of OpenAI's form says, else the beginning of the body."""
    try:
        error = json.loads(body)["error"]
        return str(error["message"] if isinstance(error, dict) else error)[:200]
    except (ValueError, LookupError, TypeError):
        return body[:200].decode(errors="replace")
