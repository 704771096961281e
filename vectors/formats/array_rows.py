"""One row of a matrix in a large file on this machine, without reading the rest of the file.

A row is found by its offset, in a safetensors file and in an `.npz` whose members are stored. A deflated member is
inflated up to the row, in pieces. Neither torch nor NumPy is needed.
"""

from __future__ import annotations

import ast
import json
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

from vectors.errors import InvalidVector

ITEM_BYTES: Mapping[str, int] = MappingProxyType({"F64": 8, "F32": 4, "F16": 2, "BF16": 2})
"""The dtypes that are read, as safetensors names them, and the bytes of one number."""

_NPY_DTYPES: Mapping[str, str] = MappingProxyType({"<f8": "F64", "<f4": "F32", "<f2": "F16"})
_MAX_HEADER_BYTES = 8 << 20
_MAX_NPY_HEADER_BYTES = 10_000
_LOCAL_HEADER = struct.Struct("<4s22xHH")
_LOCAL_SIGNATURE = b"PK\x03\x04"
_NPY_MAGIC = b"\x93NUMPY"
_ENCRYPTED = 1


@dataclass(frozen=True, slots=True)
class Row:
    """One row, `[num_columns]`, of a matrix with `num_rows` rows: its little-endian bytes, of dtype `dtype`."""

    data: bytes
    dtype: str
    num_rows: int
    num_columns: int


def read_safetensors_row(path: Path, name: str, index: int) -> Row:
    """Row `index` of the matrix `name` in a safetensors file. Raises `InvalidVector` and `OSError`."""
    with path.open("rb") as file:
        header, start = _safetensors_header(file, path.name)
        entry = header.get(name)
        if not isinstance(entry, dict):
            raise _missing(path.name, name, [other for other in header if other != "__metadata__"])
        dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
        if not (isinstance(offsets, list) and len(offsets) == 2 and all(isinstance(one, int) for one in offsets)):
            raise InvalidVector(f"{path.name}: {name} does not say where it is")
        matrix = _Matrix(f"{path.name}: {name}", str(dtype), shape, is_by_columns=False)
        if offsets[1] - offsets[0] != matrix.num_bytes:
            raise InvalidVector(f"{matrix.what}: expected {matrix.num_bytes} bytes, got {offsets[1] - offsets[0]}")
        return matrix.row(file, start + offsets[0], index)


def read_npz_row(path: Path, name: str, index: int) -> Row:
    """Row `index` of the array `name` in an `.npz` file of NumPy. Raises `InvalidVector` and `OSError`."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = {member.filename: member for member in archive.infolist()}
            member = members.get(f"{name}.npy")
            if member is None:
                raise _missing(path.name, name, [other.removesuffix(".npy") for other in members])
            if member.flag_bits & _ENCRYPTED:
                raise InvalidVector(f"{path.name} is encrypted")
            with _opened(path, archive, member) as (file, first):
                matrix, start = _npy_header(file, first, f"{path.name}: {name}")
                return matrix.row(file, start, index)
    except (zipfile.BadZipFile, NotImplementedError, zlib.error, EOFError) as error:
        raise InvalidVector(f"{path.name} cannot be read as an .npz file: {str(error)[:120]}") from None


@dataclass(frozen=True, slots=True)
class _Matrix:
    """A matrix's dtype and shape, checked. `is_by_columns`: the first index varies fastest (Fortran's order)."""

    what: str
    dtype: str
    shape: Any
    is_by_columns: bool

    def __post_init__(self) -> None:
        if self.dtype not in ITEM_BYTES:
            raise InvalidVector(f"{self.what}: expected one of {', '.join(ITEM_BYTES)} as dtype, got {self.dtype:.40}")
        shape = self.shape
        if not (isinstance(shape, list | tuple) and len(shape) == 2 and all(type(n) is int and n > 0 for n in shape)):
            raise InvalidVector(f"{self.what}: expected shape [features, hidden], got {shape!r:.60}")

    @property
    def num_bytes(self) -> int:
        rows, columns = self.shape
        return int(rows * columns * ITEM_BYTES[self.dtype])

    def row(self, file: IO[bytes], start: int, index: int) -> Row:
        """Row `index` of the matrix that begins at byte `start` of `file`."""
        rows, columns = self.shape
        if not 0 <= index < rows:
            raise InvalidVector(f"feature: expected 0 to {rows - 1}, got {index}", "feature")
        size = ITEM_BYTES[self.dtype]
        if self.is_by_columns:
            pieces = [_read_at(file, start + (index + column * rows) * size, size) for column in range(columns)]
        else:
            pieces = [_read_at(file, start + index * columns * size, columns * size)]
        data = b"".join(pieces)
        if len(data) != columns * size:
            raise InvalidVector(f"{self.what}: the file ends before row {index}; is it truncated?")
        return Row(data, self.dtype, rows, columns)


def _read_at(file: IO[bytes], offset: int, num_bytes: int) -> bytes:
    file.seek(offset)
    return file.read(num_bytes)


def _missing(file: str, name: str, names: list[str]) -> InvalidVector:
    return InvalidVector(f"{file}: expected a matrix named {name}, got {', '.join(names)[:200] or 'no arrays'}")


def _safetensors_header(file: IO[bytes], name: str) -> tuple[dict[str, Any], int]:
    """The header, and the byte at which the tensors begin."""
    length = int.from_bytes(file.read(8), "little")
    if length > _MAX_HEADER_BYTES:
        raise InvalidVector(f"{name}: expected a safetensors file with a header of at most {_MAX_HEADER_BYTES} bytes")
    try:
        header = json.loads(file.read(length))
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict):
        raise InvalidVector(f"{name}: expected a safetensors file, got one whose header is not a JSON object")
    return header, 8 + length


@contextmanager
def _opened(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Iterator[tuple[IO[bytes], int]]:
    """A file to seek in, and the byte at which the member begins in it.

    A stored member is read from the archive itself, since `zipfile` would read all that comes before the row.
    """
    if member.compress_type != zipfile.ZIP_STORED:
        with archive.open(member) as inflated:
            yield inflated, 0
        return
    with path.open("rb") as file:
        header = _read_at(file, member.header_offset, _LOCAL_HEADER.size)
        if len(header) != _LOCAL_HEADER.size or header[:4] != _LOCAL_SIGNATURE:
            raise InvalidVector(f"{path.name} is damaged: {member.filename} is not where its directory says")
        _, name_bytes, extra_bytes = _LOCAL_HEADER.unpack(header)
        yield file, member.header_offset + _LOCAL_HEADER.size + name_bytes + extra_bytes


def _npy_header(file: IO[bytes], start: int, what: str) -> tuple[_Matrix, int]:
    """The array that begins at byte `start`, and the byte at which its numbers begin."""
    magic = _read_at(file, start, 8)
    size = 2 if magic[6:7] == b"\x01" else 4
    length = int.from_bytes(file.read(size), "little")
    if magic[:6] != _NPY_MAGIC or length > _MAX_NPY_HEADER_BYTES:
        raise InvalidVector(f"{what}: expected an array of NumPy")
    try:
        header = ast.literal_eval(file.read(length).decode("utf-8").strip())
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        header = None
    if not isinstance(header, dict):
        raise InvalidVector(f"{what}: the array's header cannot be read")
    code = str(header.get("descr"))
    shape, is_by_columns = header.get("shape"), header.get("fortran_order") is True
    return _Matrix(what, _NPY_DTYPES.get(code, code), shape, is_by_columns), start + 8 + size + length
