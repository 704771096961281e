"""`.svec` of IBM's activation-steering library: JSON `{"model_type", "directions": {layer: [numbers]}, …}`.

The library reads the direction of key L at the output of block L and adds it at the input of block L, the output of
block L-1 (`as_applied`, the default). `as_derived` adds it where it was read.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from vectors.errors import InvalidVector
from vectors.formats.codec import Codec
from vectors.formats.json_object import read_object
from vectors.formats.making import make_vector
from vectors.formats.options import ImportOptions
from vectors.vector import SteeringVector
from vectors.vocabulary import DEFAULT_CONVENTION, Convention

_KEY = re.compile(r"0|[1-9][0-9]{0,3}")
_MEANINGS: dict[Convention, str] = {
    "as_applied": "key L is added to the input of block L, the output of block L-1, as the library does",
    "as_derived": "key L is added to the output of block L, where the library read it",
}


def is_svec(data: bytes) -> bool:
    """True for text that begins like a JSON object; a safetensors file has zeros in its first eight bytes."""
    return data[:64].lstrip()[:1] == b"{" and 0 not in data[:8]


def decode_svec(data: bytes, options: ImportOptions, num_layers: int | None, hidden_size: int | None) -> SteeringVector:
    """Read a `.svec` file; `num_layers` tells which key was read behind the final norm. Raises `InvalidVector`."""
    options.refuse_row("its keys give the layers")
    convention = options.choose_convention(tuple(_MEANINGS)) or DEFAULT_CONVENTION
    content = read_object(data, "the file")
    entries = content.get("directions")
    if not isinstance(entries, dict) or not entries:
        raise InvalidVector(
            f"expected directions, an object of lists of numbers by layer, got {_shown(content)}", "directions"
        )
    read = {_layer_of(key): _direction_of(key, numbers, hidden_size) for key, numbers in entries.items()}
    shift = -1 if convention == "as_applied" else 0
    directions = {layer + shift: direction for layer, direction in read.items()}
    notes: dict[str, Any] = {"format": "svec", "convention": f"{convention}: {_MEANINGS[convention]}"}
    if directions.pop(-1, None) is not None:
        notes["key_0"] = "left out: it is added to the input of block 0, and there is no block before it"
    if not directions:
        raise InvalidVector("key 0 is added to the input of block 0, which is no site: send convention=as_derived")
    if isinstance(content.get("model_type"), str):
        notes["model_type"] = content["model_type"][:200]
    if "positions" not in options.overrides:
        notes["positions"] = "all, as the library steers"
    behind_norm = None if num_layers is None else num_layers - 1 + shift
    return make_vector(directions, options, notes, {"positions": "all"}, behind_norm=behind_norm)


def _shown(content: dict[str, Any]) -> str:
    if "directions" in content:
        return f"a {type(content['directions']).__name__} of none"
    return f"an object of {', '.join(list(content)[:6])[:200] or 'nothing'}"


def _layer_of(key: str) -> int:
    if _KEY.fullmatch(key) is None:
        raise InvalidVector(f"directions: expected layers as keys, got {key[:60]!r}", "directions")
    return int(key)


def _direction_of(key: str, numbers: object, hidden_size: int | None) -> Tensor:
    name = f"directions.{key}"
    if isinstance(numbers, list) and len(numbers) == 1 and isinstance(numbers[0], list):
        numbers = numbers[0]
    if not isinstance(numbers, list) or not all(type(number) in (int, float) for number in numbers):
        raise InvalidVector(f"{name}: expected a list of numbers", name)
    if not numbers or (hidden_size is not None and len(numbers) != hidden_size):
        expected = "numbers" if hidden_size is None else f"{hidden_size} numbers (the model's hidden size)"
        raise InvalidVector(f"{name}: expected {expected}, got {len(numbers)}", name)
    try:
        return torch.tensor(numbers, dtype=torch.float64).to(torch.float32)
    except (OverflowError, ValueError, RuntimeError):
        raise InvalidVector(f"{name}: a number is too large", name) from None


CODEC = Codec(is_svec, decode_svec, lambda data: "JSON (.svec)")
