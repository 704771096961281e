"""The JSON schema of `method.steering`: the options of a training as `Task.from_json` reads them.

It checks nothing: what a task is, and what errors say of it, is the `vectors` package's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

from server.api.http.wire import UNIQUE
from vectors.training.method import MAX_EXEMPLARS, MAX_ITEMS, MAX_SCALES, MAX_SEEDS, VARIANTS
from vectors.training.task import MAX_SCALE, MAX_SIZES, Kind
from vectors.vocabulary import MAX_LAYER, SITES

_SHARE = {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}
_SHARES = ("train", "validation", "test")
_NULL = {"type": "null"}


def _some_of(names: Sequence[str]) -> dict[str, Any]:
    several = {"type": "array", "items": {"enum": list(names)}, "minItems": 1, **UNIQUE}
    return {"anyOf": [{"enum": [*names, "all", None]}, several]}


def _auto_or(schema: dict[str, Any], most: int) -> dict[str, Any]:
    several = {"type": "array", "items": schema, "minItems": 1, "maxItems": most, **UNIQUE}
    return {"anyOf": [{"enum": ["auto", None]}, several]}


def _whole(smallest: int, largest: int) -> dict[str, Any]:
    return {"type": ["integer", "null"], "minimum": smallest, "maximum": largest}


_SWITCH = {"type": ["boolean", "null"]}
_SPLIT = {
    "type": "object",
    "properties": dict.fromkeys(_SHARES, _SHARE),
    "required": list(_SHARES),
    "additionalProperties": False,
    "description": "Shares of the items; they sum to 1.",
}
_SIZES = {
    "type": "array",
    "items": {"type": "integer", "minimum": 2, "maximum": 1_000_000},
    "minItems": 1,
    "maxItems": MAX_SIZES,
    **UNIQUE,
}
_SCALE = {
    "anyOf": [
        {"type": "number", "minimum": 1e-6, "maximum": 1e6},
        {"type": "number", "minimum": -1e6, "maximum": -1e-6},
    ]
}

_PROPERTIES: dict[str, Any] = {
    "task": {"enum": [*get_args(Kind), None]},
    "vector": {"type": ["string", "null"], "description": "Of `evaluate`: a name, or `name@revision`."},
    "scale": {"type": ["number", "null"], "minimum": -MAX_SCALE, "maximum": MAX_SCALE, "description": "Of `evaluate`."},
    "sizes": {"anyOf": [_SIZES, _NULL], "description": "Of `sweep`."},
    "variant": _some_of(VARIANTS),
    "site": _some_of(SITES),
    "layers": _auto_or({"type": "integer", "minimum": 0, "maximum": MAX_LAYER}, MAX_LAYER),
    "scales": _auto_or(_SCALE, MAX_SCALES),
    "split": {"anyOf": [_SPLIT, _NULL]},
    "prompt": {"enum": ["raw", "chat", None]},
    "letters": {"enum": ["balanced", "paper", None]},
    "icl": _whole(0, MAX_EXEMPLARS),
    "seeds": _whole(1, MAX_SEEDS),
    "max_items": _whole(8, MAX_ITEMS),
    "paper_offset": _SWITCH,
    "relative_scales": _SWITCH,
    "allow_no_gain": _SWITCH,
    "retention_file": {"type": ["string", "null"], "description": "The id of an uploaded file."},
}

OPTIONS_SCHEMA: dict[str, Any] = {
    "anyOf": [{"type": "object", "properties": _PROPERTIES, "additionalProperties": False}, _NULL],
    "description": "The options of the training, each with a default (docs/training.md).",
}
