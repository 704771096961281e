"""Runs scoring requests for a waiting client, a bounded number at a time, so that other clients are not held up."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace

from anyio.to_thread import run_sync

from server.api.generation.mailbox import mailbox
from server.api.http.engine_errors import from_engine_error
from server.api.http.limiting import Caller
from server.engine.errors import QueueFull, StepFailed
from server.engine.protocol import Engine
from server.engine.request import EngineRequest, FinishReason, TokenOutput
from server.errors import Unavailable

MAX_UNDER_WAY = 32
"""The most scoring requests of one client in the engine at a time: half of the engine's default."""


class Scoring:
    """Running requests that generate nothing. Use as a context; leaving it aborts what is still running."""

    def __init__(self, engine: Engine, caller: Caller) -> None:
        self._engine = engine
        self._caller = caller
        self._most = min(MAX_UNDER_WAY, engine.max_requests)
        self._mailbox = mailbox()
        self._ended: asyncio.Queue[tuple[int, TokenOutput]] = asyncio.Queue()
        self._under_way: dict[int, str] = {}

    def __enter__(self) -> Scoring:
        return self

    def __exit__(self, *exception: object) -> None:
        for request_id in self._under_way.values():
            self._engine.abort(request_id)
        self._under_way.clear()

    async def outputs(self, requests: Iterator[EngineRequest]) -> list[TokenOutput]:
        """The last event of each request, in order. `requests` are made as they are needed, on another thread.

        Raises `QueueFull` when the queue is full and none of these requests is running, the API error of
        a request that failed, `Unavailable`, and whatever making and submitting a request raises.
        """
        found: dict[int, TokenOutput] = {}
        number = 0
        request = await run_sync(next, requests, None)
        while request is not None or self._under_way:
            if request is not None and len(self._under_way) < self._most and self._has_submitted(number, request):
                number += 1
                request = await run_sync(next, requests, None)
                continue
            index, output = await self._ended.get()
            del self._under_way[index]
            _check(output)
            found[index] = output
        return [found[index] for index in range(number)]

    def _has_submitted(self, index: int, request: EngineRequest) -> bool:
        """Submit the request; False when the queue is full and one of ours will make room."""

        def receive(output: TokenOutput) -> None:
            if output.finish_reason is not None:
                self._mailbox.put(self._ended.put_nowait, (index, output))

        try:
            self._engine.submit(replace(request, owner=self._caller.owner), receive)
        except QueueFull:
            if not self._under_way:
                raise
            return False
        self._under_way[index] = request.request_id
        self._caller.charge(len(request.prompt))
        return True


def _check(output: TokenOutput) -> None:
    if output.finish_reason is FinishReason.ERROR:
        raise from_engine_error(output.error or StepFailed())
    if output.finish_reason is FinishReason.ABORT:
        raise Unavailable("the server shut down before the answer was complete", code="shutting_down")
