"""One row of a matrix in a large file on this machine, without reading the rest of the file.

A row is found by its offset, in a safetensors file and in an `.npz` whose members are stored. A deflated member is
inflated up to the row, in pieces. Neither torch nor NumPy is needed.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

from vectors.errors import InvalidVector
from vectors.formats.headers import METADATA, read_npy_header, read_safetensors_header
from vectors.formats.zips import IS_ENCRYPTED, content_start

ITEM_BYTES: Mapping[str, int] = MappingProxyType({"F64": 8, "F32": 4, "F16": 2, "BF16": 2})
"""The dtypes that are read, as safetensors names them, and the bytes of one number."""

_NPY_DTYPES: Mapping[str, str] = MappingProxyType({"<f8": "F64", "<f4": "F32", "<f2": "F16"})


@dataclass(frozen=True, slots=True)
class Row:
    """One row, `[num_columns]`, of a matrix with `num_rows` rows: its little-endian bytes, of dtype `dtype`."""

    data: bytes
    dtype: str
    num_rows: int
    num_columns: int


def read_safetensors_row(path: Path, name: str, index: int) -> Row:
    """Row `index` of the matrix `name` in a safetensors file. Raises `InvalidVector` and `OSError`."""
    with _naming(path), path.open("rb") as file:
        header, start = read_safetensors_header(file)
        entry = header.get(name)
        if not isinstance(entry, dict):
            raise _missing(name, [other for other in header if other != METADATA])
        dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
        if not (isinstance(offsets, list) and len(offsets) == 2 and all(isinstance(one, int) for one in offsets)):
            raise InvalidVector(f"{name} does not say where it is")
        matrix = _Matrix(name, str(dtype), shape, is_by_columns=False)
        if offsets[1] - offsets[0] != matrix.num_bytes:
            raise InvalidVector(f"{name}: expected {matrix.num_bytes} bytes, got {offsets[1] - offsets[0]}")
        return matrix.row(file, start + offsets[0], index)


def read_npz_row(path: Path, name: str, index: int) -> Row:
    """Row `index` of the array `name` in an `.npz` file of NumPy. Raises `InvalidVector` and `OSError`."""
    with _naming(path), path.open("rb") as file, zipfile.ZipFile(file) as archive:
        members = {member.filename: member for member in archive.infolist()}
        member = members.get(f"{name}.npy")
        if member is None:
            raise _missing(name, [other.removesuffix(".npy") for other in members])
        if member.flag_bits & IS_ENCRYPTED:
            raise InvalidVector("the archive is encrypted")
        if member.compress_type == zipfile.ZIP_STORED:  # zipfile would read all that comes before the row
            return _npy_row(file, content_start(file, member), name, index)
        with archive.open(member) as inflated:
            return _npy_row(inflated, 0, name, index)


def _npy_row(file: IO[bytes], start: int, name: str, index: int) -> Row:
    """Row `index` of the array that begins at byte `start` of `file`."""
    file.seek(start)
    header = read_npy_header(file)
    code = header.order + header.code
    matrix = _Matrix(name, _NPY_DTYPES.get(code, code), header.shape, header.is_fortran)
    return matrix.row(file, start + header.num_bytes, index)


@dataclass(frozen=True, slots=True)
class _Matrix:
    """A matrix's dtype and shape, checked. `is_by_columns`: the first index varies fastest (Fortran's order)."""

    name: str
    dtype: str
    shape: Any
    is_by_columns: bool

    def __post_init__(self) -> None:
        if self.dtype not in ITEM_BYTES:
            raise InvalidVector(f"{self.name}: expected one of {', '.join(ITEM_BYTES)} as dtype, got {self.dtype:.40}")
        shape = self.shape
        if not (isinstance(shape, list | tuple) and len(shape) == 2 and all(type(n) is int and n > 0 for n in shape)):
            raise InvalidVector(f"{self.name}: expected shape [features, hidden], got {shape!r:.60}")

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
            raise InvalidVector(f"{self.name}: the file ends before row {index}; is it truncated?")
        return Row(data, self.dtype, rows, columns)


def _read_at(file: IO[bytes], offset: int, num_bytes: int) -> bytes:
    file.seek(offset)
    return file.read(num_bytes)


def _missing(name: str, names: list[str]) -> InvalidVector:
    return InvalidVector(f"expected a matrix named {name}, got {', '.join(names)[:200] or 'no arrays'}")


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Errors of what is in a file begin with the file's name."""
    try:
        yield
    except InvalidVector as error:
        raise InvalidVector(f"{path.name}: {error}", error.param) from None
    except (zipfile.BadZipFile, NotImplementedError, zlib.error, EOFError) as error:
        raise InvalidVector(f"{path.name} cannot be read as an .npz file: {str(error)[:120]}") from None
