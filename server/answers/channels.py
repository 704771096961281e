"""Answers in channels, as GPT-OSS writes them: every part has a header, also the content.

A chat template shows it by what it writes before an answer. Between two parts the model writes a new header of its own
turn, which belongs to none of them.
"""

from __future__ import annotations

from typing import Any

from server.answers.call_shape import NAMED_CALL, CallShape

CONTENT_HEADER = "<|channel|>final<|message|>"

_TURN = "<|start|>assistant"

REASONING_MARKERS = ("<|channel|>analysis<|message|>", f"<|end|>{_TURN}")
"""The text before the reasoning, and between the reasoning and the next part."""

CALLS = CallShape("<|channel|>commentary to=functions.", " <|constrain|>json<|message|>", "", "", repeats=False)
"""A call as the model writes it. A special token that ends the answer follows it."""

SPEC: dict[str, Any] = {
    "defaults": {"role": "assistant"},
    "start_anchor": _TURN,
    "fields": {
        "thinking": {"open": REASONING_MARKERS[0], "close": ["<|end|>", "<|return|>"], "repeats": True, "join": "\n"},
        "tool_calls": {
            "open_pattern": r"(?:<\|channel\|>(?:commentary|analysis)\s*)?to=functions\.(?P<name>[\w.-]+)"
            r"(?:(?!<\|message\|>).){0,80}<\|message\|>",
            "close": ["<|call|>", "<|end|>", "<|return|>"],
            "content": "json",
            "repeats": True,
            "transform": NAMED_CALL,
        },
        "content": {
            "open_pattern": r"<\|channel\|>(?:final|commentary)(?:\s*<\|constrain\|>\w*)?<\|message\|>",
            "close": ["<|end|>", "<|return|>"],
            "repeats": True,
            "join": "\n",
        },
    },
}
"""The response template."""
