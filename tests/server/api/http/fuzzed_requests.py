"""Seeded random requests to the routes that generate, for the embedded model: mostly right, some wrong."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

Body = dict[str, Any]

_TOPICS = ("music", "rain", "bread", "the sea", "cats", "winter", "tea", "trains")
_SCHEMA = {"type": "object", "properties": {"likes": {"type": "boolean"}}, "required": ["likes"]}
_TOOL = {"name": "play", "parameters": _SCHEMA | {"additionalProperties": False}}
_WRONG: tuple[tuple[str, Any], ...] = (
    ("temperature", "hot"),
    ("steering", [{"vector": "nobody"}]),
    ("steering", [{"vector": "honest", "layers": [99]}]),
    ("model", "gpt"),
    ("colour", 3),
    ("messages", []),
    ("prompt", {}),
    ("input", 5),
)


def question(choose: random.Random) -> str:
    """Something that the embedded model may be asked."""
    return f"Do you like {choose.choice(_TOPICS)}? {choose.randrange(1000)}"


def steering(choose: random.Random) -> list[Body]:
    """Up to six entries of any scale, site of use and operation."""
    return [
        {
            "vector": choose.choice(("cheerful", "honest")),
            "scale": round(choose.uniform(-2, 2), 3),
            **choose.choice(({}, {"layers": [choose.randrange(6)]}, {"positions": choose.choice(("all", "prompt"))})),
            **choose.choice(({}, {}, {"operation": "ablate", "scale": 1.0}, {"preserve_norm": True})),
        }
        for _ in range(choose.randrange(7))
    ]


def _sampled(choose: random.Random, most: int) -> Body:
    body: Body = {"steering": steering(choose), "stream": choose.random() < 0.7}
    body |= choose.choice(({"temperature": 0}, {"seed": choose.randrange(1000)}, {"top_p": 0.9, "top_k": 20}))
    return body | {"max_tokens": choose.randrange(1, most), "n": choose.choice((1, 1, 2, 3))}


def _chat(choose: random.Random, most: int) -> tuple[str, Body]:
    body = _sampled(choose, most) | {"messages": [{"role": "user", "content": question(choose)}]}
    extras: tuple[Body, ...] = (
        {},
        {"ignore_eos": True},
        {"ignore_eos": True, "logprobs": True, "top_logprobs": 20},
        {"stop": ["."]},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "liking", "schema": _SCHEMA}}},
        {"tools": [{"type": "function", "function": _TOOL}], "tool_choice": "required"},
    )
    return "/v1/chat/completions", body | choose.choice(extras)


def _completion(choose: random.Random, most: int) -> tuple[str, Body]:
    prompts = [question(choose) for _ in range(choose.choice((1, 1, 3)))]
    extras: tuple[Body, ...] = ({}, {"ignore_eos": True}, {"logprobs": 5}, {"echo": True})
    return "/v1/completions", _sampled(choose, most) | {"prompt": prompts} | choose.choice(extras)


def _response(choose: random.Random, most: int) -> tuple[str, Body]:
    body = _sampled(choose, most) | {"input": question(choose)}
    body["max_output_tokens"] = body.pop("max_tokens")
    del body["n"]
    extras: tuple[Body, ...] = (
        {},
        {"store": True},
        {"tools": [{"type": "function", **_TOOL}], "tool_choice": "required"},
        {"text": {"format": {"type": "json_schema", "name": "liking", "schema": _SCHEMA}}},
    )
    body.pop("seed", None)
    body.pop("top_k", None)
    return "/v1/responses", body | choose.choice(extras)


def _decision(choose: random.Random, most: int) -> tuple[str, Body]:
    asked = [
        {"type": "predicate", "instructions": "This is about music."},
        {"type": "choice", "instructions": "What is it?", "choices": [{"value": "a question"}, {"value": "a song"}]},
        {"type": "score", "instructions": "How long is it?", "levels": [{"label": "short"}, {"label": "long"}]},
    ]
    questions = [choose.choice(asked) for _ in range(choose.randrange(1, 4))]
    return "/v1/decisions", {"input": question(choose), "questions": questions, "steering": steering(choose)}


_Route = Callable[[random.Random, int], tuple[str, Body]]
_ROUTES: tuple[_Route, ...] = (_chat, _chat, _completion, _response, _decision)


def right_request(choose: random.Random, most: int = 100) -> tuple[str, Body]:
    """The path and body of a request of up to `most` tokens a choice, which the server accepts."""
    return choose.choice(_ROUTES)(choose, most)


def wrong_request(choose: random.Random) -> tuple[str, bytes]:
    """The path of a route and a body that it refuses."""
    path, body = right_request(choose)
    kind = choose.randrange(4)
    if kind == 0:
        return path, choose.randbytes(choose.randrange(1, 3000))
    if kind == 1:
        return path, json.dumps(body)[: -choose.randrange(1, 40)].encode()
    if kind == 2:
        return path, b"[" * 100_000
    name, value = choose.choice(_WRONG)
    return path, json.dumps(body | {name: value}).encode()


def long_chat(choose: random.Random) -> tuple[str, Body]:
    """A chat whose answer is larger than what a connection's buffers hold."""
    body = {"messages": [{"role": "user", "content": question(choose)}], "steering": steering(choose), "n": 3}
    body |= {"max_tokens": 250, "ignore_eos": True, "logprobs": True, "top_logprobs": 20}
    return "/v1/chat/completions", body | {"stream": choose.random() < 0.7}


def http_bytes(path: str, body: bytes, *, closes: bool = True) -> bytes:
    """A POST request as it goes over the wire."""
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(body)}"]
    if closes:
        lines.append("Connection: close")
    return "\r\n".join([*lines, "", ""]).encode() + body
