"""NumPy's `.npy` and `.npz`: one array, or arrays by name.

The header of an array is matched as the literal that NumPy writes, never evaluated, and NumPy's own readers, which can
unpickle, are not used.
"""

from __future__ import annotations

import re

from torch import Tensor

from vectors.errors import InvalidVector
from vectors.formats.arrays import tensor_of
from vectors.formats.codec import Codec
from vectors.formats.interpretation import Content, interpret
from vectors.formats.options import ImportOptions
from vectors.formats.zips import ZipMembers, zip_kind
from vectors.vector import SteeringVector

_MAGIC = b"\x93NUMPY"
_MAX_HEADER_BYTES = 10_000
_HEADER = re.compile(
    r"\{'descr': '(?P<order>[<>|=])(?P<code>[A-Za-z][0-9]{0,4})', 'fortran_order': (?P<fortran>True|False), "
    r"'shape': \((?P<shape>(?:[0-9]{1,12}(?:, ?[0-9]{1,12}){0,31},?)?)\),? ?\}\s*"
)


def read_npy(data: bytes) -> Tensor:
    """The array in a `.npy` file as a tensor. Raises `InvalidVector`."""
    if data[:6] != _MAGIC or data[6:8] not in (b"\1\0", b"\2\0", b"\3\0"):
        raise InvalidVector("expected NumPy's format 1 to 3 of an array")
    width = 2 if data[6] == 1 else 4
    start = 8 + width
    length = int.from_bytes(data[8:start], "little")
    if length > min(_MAX_HEADER_BYTES, len(data) - start):
        raise InvalidVector("the array's header is longer than the file, or too long; is the file truncated?")
    header = data[start : start + length].decode("latin-1")
    match = _HEADER.fullmatch(header)
    if match is None:
        raise InvalidVector(f"expected the header of an array of numbers, got {header[:80]!r}")
    shape = [int(size) for size in re.findall("[0-9]+", match["shape"])]
    return tensor_of(match["code"], match["order"], shape, match["fortran"] == "True", data[start + length :])


def read_npz(data: bytes) -> dict[str, Tensor]:
    """The arrays of a `.npz` file by name, without their suffix. Raises `InvalidVector`."""
    members = ZipMembers(data)
    return {name.removesuffix(".npy"): read_npy(members.read(name)) for name in members.names}


def is_numpy(data: bytes) -> bool:
    """True for an array, and for a zip of arrays."""
    return data[:6] == _MAGIC or zip_kind(data) == "npz"


def decode_numpy(
    data: bytes, options: ImportOptions, num_layers: int | None, hidden_size: int | None
) -> SteeringVector:
    """Read an array or arrays by name; the model's numbers are as for `decode`. Raises `InvalidVector`."""
    content = Content("npy", read_npy(data), {}) if data[:6] == _MAGIC else Content("npz", read_npz(data), {})
    return interpret(content, options, num_layers, hidden_size)


def _container(data: bytes) -> str:
    return "NumPy .npy" if data[:6] == _MAGIC else "NumPy .npz"


CODEC = Codec(is_numpy, decode_numpy, _container)
