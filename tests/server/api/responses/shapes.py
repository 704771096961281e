"""What the SDK's types say about responses and their events, checked to the letter."""

from __future__ import annotations

import json
import typing
from collections.abc import Iterable
from typing import Any

from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from tests.server.api.chat.shapes import models_within

ABSENT = {
    "access_programs",
    "conversation",
    "image",
    "input_transformations",
    "max_tool_calls",
    "moderation",
    "prompt",
    "prompt_cache_diagnostics",
    "prompt_cache_options",
    "tool_usage",
}
"""Fields of a response that tell of what this server lacks."""

EVENTS = {
    typing.get_args(kind.model_fields["type"].annotation)[0]: kind
    for kind in typing.get_args(typing.get_args(ResponseStreamEvent)[0])
}


def exactly(kind: Any, payload: dict[str, Any]) -> Any:
    """`payload` as a type of the SDK: every type strictly, and nothing that the type does not know but `steering`."""
    model = TypeAdapter(kind).validate_python(payload, strict=True)
    for part in models_within(model):
        extra = set(part.model_extra or {})
        assert extra == ({"steering"} if isinstance(part, Response) else set()), (type(part), extra)
        if isinstance(part, Response):
            assert type(part).model_fields.keys() - part.model_fields_set == ABSENT
    return model


def events_of(text: str) -> list[dict[str, Any]]:
    """The events of a stream's text, each exactly as the SDK types it, named and numbered."""
    *blocks, rest = text.split("\n\n")
    assert rest == ""
    events = []
    for number, block in enumerate(blocks):
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        assert event["sequence_number"] == number
        exactly(EVENTS[event["type"]], event)
        events.append(event)
    return events


def rebuilt(events: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The output that the deltas of a stream come to, kept by a reader who trusts nothing but deltas."""
    items: list[dict[str, Any]] = []
    for event in events:
        kind = event["type"].removeprefix("response.")
        if kind == "output_item.added":
            assert event["output_index"] == len(items)
            items.append(json.loads(json.dumps(event["item"])))
        elif "item_id" in event:
            item = items[event["output_index"]]
            assert (event["item_id"], event["output_index"]) == (item["id"], len(items) - 1)
            if kind == "content_part.added":
                item["content"].append(json.loads(json.dumps(event["part"])))
            elif kind == "function_call_arguments.delta":
                item["arguments"] += event["delta"]
            elif kind == "function_call_arguments.done":
                assert event["arguments"] == item["arguments"]
            elif kind.endswith("text.delta"):
                item["content"][event["content_index"]]["text"] += event["delta"]
            elif kind.endswith("text.done"):
                assert event["text"] == item["content"][event["content_index"]]["text"]
        elif kind == "output_item.done":
            items[-1]["status"] = event["item"]["status"]
    return items


def without_ids(output: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Items without what is new each time."""
    return [{name: value for name, value in item.items() if name not in ("id", "call_id")} for item in output]
