"""Invariant 5: 32 streams, each with a vector, scale and layer of its own, while the registry changes under them."""

from __future__ import annotations

import asyncio
import random
import threading
from pathlib import Path

import httpx
import openai
from safetensors.torch import save

from server.engine.engine import BatchingEngine, EngineSettings
from server.engine.request import EngineRequest, OutputSink
from tests.server.api.serving import LAYERS, MODEL, Server, direction, eventually, serving

NUM_STREAMS = 32
NUM_SWAPS = 100
NUM_TOKENS = 24
SWAPS_PER_STEP = 7
"""So that a seventh of as many tokens as swaps are generated while the registry changes."""
LIMITS = EngineSettings(num_pages=1024, page_size=8, max_running=NUM_STREAMS, max_batch_tokens=512)


class PacedEngine(BatchingEngine):
    """Once `pace` was called it takes as many steps as it is allowed, so that a test knows what still runs."""

    def __init__(self, *parts: object) -> None:
        super().__init__(*parts)  # type: ignore[arg-type]
        self._pace = threading.Condition()
        self._num_allowed: int | None = None
        self.num_submitted = 0

    def pace(self, num_steps: int | None) -> None:
        """Allow that many steps from now on; None: as many as there are."""
        with self._pace:
            self._num_allowed = num_steps
            self._pace.notify_all()

    @property
    def is_held(self) -> bool:
        """True when it waits to be allowed a step."""
        return self._num_allowed == 0

    def submit(self, request: EngineRequest, sink: OutputSink) -> None:
        """See `BatchingEngine.submit`."""
        super().submit(request, sink)
        self.num_submitted += 1

    def step(self) -> bool:
        """See `BatchingEngine.step`."""
        with self._pace:
            self._pace.wait_for(lambda: self._num_allowed != 0)
            if self._num_allowed is not None:
                self._num_allowed -= 1
        return super().step()


def file_of(seed: int, layer: int) -> bytes:
    """A safetensors file with one direction."""
    return save({f"residual.{layer}": direction(seed, 2.0)})


def request_of(index: int) -> dict[str, object]:
    """The request of stream `index`: its own prompt, vector and scale."""
    return {
        "model": MODEL,
        "messages": [{"role": "user", "content": f"stream {index}"}],
        "temperature": 0,
        "max_tokens": NUM_TOKENS,
        "extra_body": {"ignore_eos": True, "steering": [{"vector": f"vector-{index}", "scale": 0.5 + index / 20}]},
    }


async def streamed(client: openai.AsyncOpenAI, index: int, first: asyncio.Event | None = None) -> tuple[str, str]:
    """The streamed text and the revision that the stream says it was steered with."""
    text, revision = "", ""
    async for chunk in await client.chat.completions.create(stream=True, **request_of(index)):  # type: ignore[call-overload]
        if not revision:
            (entry,) = chunk.steering
            revision = entry["revision"]
        text += chunk.choices[0].delta.content or ""
        if first is not None and text:
            first.set()
    return text, revision


async def swap(http: httpx.AsyncClient, choose: random.Random, number: int) -> None:
    """Replace or delete one of the vectors."""
    index = choose.randrange(NUM_STREAMS)
    url = f"/v1/steering/vectors/vector-{index}"
    if number % 3 == 2:
        assert (await http.delete(url)).status_code in (200, 404)
    else:
        content = file_of(1000 + number, choose.randrange(LAYERS))
        assert (await http.put(url, content=content)).status_code in (200, 201)


async def scenario(server: Server) -> None:
    async with (
        openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120) as client,
        httpx.AsyncClient(base_url=server.url, timeout=60) as http,
    ):
        for index in range(NUM_STREAMS):
            await http.put(f"/v1/steering/vectors/vector-{index}", content=file_of(index, index % LAYERS))
        undisturbed = await asyncio.gather(*(streamed(client, index) for index in range(NUM_STREAMS)))
        assert len({text for text, _ in undisturbed}) == NUM_STREAMS, "the vectors must make a difference"

        engine = server.engine
        assert isinstance(engine, PacedEngine)
        engine.pace(0)
        started = [asyncio.Event() for _ in range(NUM_STREAMS)]
        streams = [asyncio.create_task(streamed(client, index, started[index])) for index in range(NUM_STREAMS)]
        while engine.num_submitted < 2 * NUM_STREAMS:  # none is steps ahead of the last
            await asyncio.sleep(0)
        while not all(event.is_set() for event in started):
            if engine.is_held:
                engine.pace(1)
            await asyncio.sleep(0)
        choose = random.Random(0)
        for number in range(NUM_SWAPS):
            await swap(http, choose, number)
            if number % SWAPS_PER_STEP == 0:
                while not engine.is_held:
                    await asyncio.sleep(0)
                engine.pace(1)
        assert not any(stream.done() for stream in streams), "the registry must change while all of them run"
        engine.pace(None)
        together = await asyncio.gather(*streams)
        assert together == undisturbed

        index = 0
        await http.put(f"/v1/steering/vectors/vector-{index}", content=file_of(5000, 1))
        text, revision = await streamed(client, index)
        assert revision != undisturbed[index][1]
        assert text != undisturbed[index][0]


def test_streams_keep_what_they_began_with(tmp_path: Path) -> None:
    with serving(tmp_path, engine_settings=LIMITS, engine_class=PacedEngine) as server:
        asyncio.run(scenario(server))
        eventually(server.is_idle)
