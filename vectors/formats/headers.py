"""The headers of NumPy's arrays and of safetensors files: where the numbers are, without the numbers.

Neither torch nor NumPy is needed, so that a client can read one row of a large file. The header of an array is matched
as the literal that NumPy writes, never evaluated.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import IO, Any

from vectors.errors import InvalidVector
from vectors.formats.json_object import read_object

NPY_MAGIC = b"\x93NUMPY"
"""How the file of an array begins."""

METADATA = "__metadata__"
"""The entry of a safetensors header that is no tensor."""

DEFAULTS_KEY = "steering_vector"
"""The key in a safetensors file's metadata under which the canonical format has a vector's defaults, as JSON."""

_MAX_NPY_BYTES = 10_000
_MAX_SAFETENSORS_BYTES = 8 << 20
_NPY_HEADER = re.compile(
    r"\{'descr': '(?P<order>[<>|=])(?P<code>[A-Za-z][0-9]{0,4})', 'fortran_order': (?P<fortran>True|False), "
    r"'shape': \((?P<shape>(?:[0-9]{1,12}(?:, ?[0-9]{1,12}){0,31},?)?)\),? ?\}\s*"
)


@dataclass(frozen=True, slots=True)
class NpyHeader:
    """An array of dtype `code` (such as `f4`) and byte order `order`; its numbers begin at byte `num_bytes`.

    `is_fortran`: the first index varies fastest.
    """

    code: str
    order: str
    shape: tuple[int, ...]
    is_fortran: bool
    num_bytes: int


def read_npy_header(file: IO[bytes]) -> NpyHeader:
    """The header of the array that begins where `file` stands. Raises `InvalidVector`."""
    magic = file.read(8)
    if magic[:6] != NPY_MAGIC or magic[6:] not in (b"\1\0", b"\2\0", b"\3\0"):
        raise InvalidVector("expected NumPy's format 1 to 3 of an array")
    size = 2 if magic[6] == 1 else 4
    length = int.from_bytes(file.read(size), "little")
    header = file.read(min(length, _MAX_NPY_BYTES))
    if len(header) != length:
        raise InvalidVector("the array's header is longer than the file, or too long; is the file truncated?")
    text = header.decode("latin-1")
    match = _NPY_HEADER.fullmatch(text)
    if match is None:
        raise InvalidVector(f"expected the header of an array of numbers, got {text[:80]!r}")
    shape = tuple(int(size) for size in re.findall("[0-9]+", match["shape"]))
    return NpyHeader(match["code"], match["order"], shape, match["fortran"] == "True", 8 + size + length)


def read_safetensors_header(file: IO[bytes]) -> tuple[dict[str, Any], int]:
    """The header at the beginning of `file`, and the byte at which the tensors begin. Raises `InvalidVector`."""
    length = int.from_bytes(file.read(8), "little")
    text = file.read(min(length, _MAX_SAFETENSORS_BYTES))
    if len(text) != length:
        raise InvalidVector("the safetensors header is longer than the file, or too long; is the file truncated?")
    return read_object(text, "the safetensors header"), 8 + length
