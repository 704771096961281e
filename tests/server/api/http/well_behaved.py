"""Streams that say the same whenever they are asked for, whatever else the server does: for the embedded model."""

from __future__ import annotations

import asyncio
import collections
import json
import time
from dataclasses import dataclass, field
from typing import Any

import httpx

MUSIC: list[Any] = [{"role": "user", "content": "Do you like music?"}]
SCHEMA = {"type": "object", "properties": {"likes": {"type": "boolean"}, "why": {"type": "string"}}}
TOOL = {"name": "play", "parameters": SCHEMA}
WELL_BEHAVED: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {"messages": MUSIC, "temperature": 0}),
    ("/v1/chat/completions", {"messages": MUSIC, "temperature": 0, "steering": [{"vector": "cheerful", "scale": -1}]}),
    ("/v1/chat/completions", {"messages": MUSIC, "seed": 5, "model": "tiller-demo+cheerful:0.7+honest:0.5", "n": 2}),
    ("/v1/chat/completions", {"messages": MUSIC, "seed": 6, "response_format": {"type": "json_object"}}),
    (
        "/v1/chat/completions",
        {"messages": MUSIC, "seed": 7, "tools": [{"type": "function", "function": TOOL}], "tool_choice": "required"},
    ),
    ("/v1/completions", {"prompt": "I like", "temperature": 0, "ignore_eos": True}),
    (
        "/v1/completions",
        {
            "prompt": "I like",
            "seed": 8,
            "ignore_eos": True,
            "steering": [{"vector": "cheerful", "preserve_norm": True}],
        },
    ),
    ("/v1/responses", {"input": "Do you like music?", "temperature": 0, "steering": [{"vector": "honest"}] * 5}),
]
MAX_TOKENS = 60


@dataclass
class Stream:
    """What a stream said, by choice, and the seconds between its pieces."""

    said: dict[int, str] = field(default_factory=lambda: collections.defaultdict(str))
    gaps: list[float] = field(default_factory=list)
    _last: float | None = None

    def add(self, event: dict[str, Any]) -> None:
        """Take an event; an answer's text, its calls' arguments, and how it ended."""
        assert "error" not in event, event
        if event.get("type") in ("response.completed", "response.incomplete"):
            self.said[-1] = json.dumps([item.get("content") for item in event["response"]["output"]])
        piece = event["delta"] if event.get("type") == "response.output_text.delta" else ""
        for choice in event.get("choices", ()):
            delta = choice.get("delta", {})
            calls = "".join(call["function"]["arguments"] for call in delta.get("tool_calls", ()))
            piece = choice.get("text") or delta.get("content") or calls
            self.said[choice["index"]] += f"{piece}<{choice['finish_reason']}>" if choice["finish_reason"] else piece
        if piece:
            now = time.perf_counter()
            self.gaps += [] if self._last is None else [now - self._last]
            self._last = now


async def ask(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> Stream:
    """A whole stream; as OpenAI's clients do, it asks again when the server says that it has no room."""
    most = "max_output_tokens" if path == "/v1/responses" else "max_tokens"
    while True:
        async with client.stream("POST", path, json=body | {"stream": True, most: MAX_TOKENS}) as response:
            if response.status_code == 429:
                await asyncio.sleep(float(response.headers["retry-after"]))
                continue
            assert response.status_code == 200, await response.aread()
            stream = Stream()
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    stream.add(json.loads(line[6:]))
            return stream
