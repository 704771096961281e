"""Zip files as untrusted input: which container one is, and its members within bounds.

`zip_kind` is the only place that tells the containers that are zips apart. Members are stored or deflated; what they
declare is checked before anything is inflated, and what comes out is checked against what was declared.
"""

from __future__ import annotations

import hashlib
import io
import struct
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import IO, Any, Literal, TypeAlias

from vectors.errors import InvalidVector

ZipKind: TypeAlias = Literal["torch", "npz", "brainpatch", "folder", "unknown"]
"""What a zip holds: an archive of `torch.save`, NumPy arrays, a BrainPatch, a folder's files, or something else."""

TENSOR_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".npy")
"""The files of a folder that hold directions."""

MANIFEST, VECTORS, CHECKSUMS = "manifest.json", "vectors.safetensors", "checksums.json"
"""The members of a BrainPatch."""

IS_ENCRYPTED = 1
"""The bit of a member's flags that says so."""

_MAX_MEMBERS = 10_000
_MAX_INFLATED = 64 << 20
_SIGNATURES = (b"PK\x03\x04", b"PK\x05\x06")
_ENTRY_SIGNATURE = b"PK\x01\x02"
_LOCAL_HEADER = struct.Struct("<4s22xHH")


class ZipMembers:
    """The members of a zip, checked before any is read. `names`: in the zip's order, without its folders.

    `most` bounds the bytes that all members have once inflated; by default the zip's own size or 64 MiB, whichever is
    larger. Raises `InvalidVector`.
    """

    def __init__(self, data: bytes, most: int | None = None) -> None:
        if data.count(_ENTRY_SIGNATURE) > _MAX_MEMBERS:  # one per member, and ZipFile creates an object for each
            raise InvalidVector(f"the archive has more than {_MAX_MEMBERS} members")
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                entries = archive.infolist()
        except Exception as error:  # zipfile raises many kinds for a damaged archive
            raise InvalidVector(f"the archive is damaged: {type(error).__name__}") from None
        self._data = data
        self._entries = {entry.filename: entry for entry in entries}
        if len(self._entries) != len(entries):
            raise InvalidVector("the archive has two members of the same name")
        for entry in entries:
            if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise InvalidVector("the archive is compressed in another way than deflate")
            if entry.flag_bits & IS_ENCRYPTED:
                raise InvalidVector("the archive is encrypted")
        if sum(entry.compress_size for entry in entries) > len(data):
            raise InvalidVector("the archive declares more bytes than it has")
        limit = max(len(data), _MAX_INFLATED) if most is None else most
        inflated = sum(entry.file_size for entry in entries)
        if inflated > limit:
            raise InvalidVector(f"the archive declares {inflated} bytes; expected at most {limit}")
        self.names = tuple(name for name in self._entries if not name.endswith("/"))

    def size(self, name: str) -> int:
        """The bytes that the member declares once inflated."""
        return self._entries[name].file_size

    def read(self, name: str) -> bytes:
        """A member's content, of the declared size and checksum."""
        entry = self._entries[name]
        start = content_start(io.BytesIO(self._data), entry)
        content = self._data[start : start + entry.compress_size]
        if entry.compress_type == zipfile.ZIP_DEFLATED:
            content = _inflated(content, entry.file_size)
        if len(content) != entry.file_size:
            raise InvalidVector(f"the archive's member {name[:60]!r} does not have the declared size")
        if zlib.crc32(content) != entry.CRC:
            raise InvalidVector(f"the archive is damaged: the checksum of {name[:60]!r} is wrong")
        return content


def content_start(file: IO[bytes], entry: zipfile.ZipInfo) -> int:
    """The byte of the zip `file` at which the content of a member begins. Raises `InvalidVector`."""
    file.seek(max(entry.header_offset, 0))
    header = file.read(_LOCAL_HEADER.size)
    if entry.header_offset < 0 or len(header) != _LOCAL_HEADER.size or header[:4] != _SIGNATURES[0]:
        raise InvalidVector(f"the archive is damaged: {entry.filename[:60]!r} is not where its directory says")
    _, name_length, extra_length = _LOCAL_HEADER.unpack(header)
    return int(entry.header_offset + _LOCAL_HEADER.size + name_length + extra_length)


def check_sha256(name: str, content: bytes, recorded: Mapping[str, Any]) -> None:
    """Raise `InvalidVector` unless `recorded` has the SHA-256 of the member's content, bare or behind `sha256:`."""
    expected = recorded.get(name)
    if not isinstance(expected, str) or expected.removeprefix("sha256:") != hashlib.sha256(content).hexdigest():
        raise InvalidVector(f"{name[:80]}: its content does not have the SHA-256 that {CHECKSUMS} gives", name[:80])


def zip_kind(data: bytes) -> ZipKind | None:
    """The container that a zip is; None for bytes that do not begin like a zip. Damaged zips are unknown."""
    if data[:4] not in _SIGNATURES:
        return None
    try:
        names = ZipMembers(data).names
    except InvalidVector:
        return _kind_of_damaged(data)
    return _kind_of(names)


def file_suffix(name: str) -> str:
    """The suffix of a member's name, in small letters."""
    return PurePosixPath(name).suffix.lower()


def _kind_of(names: Iterable[str]) -> ZipKind:
    found = set(names)
    if any(PurePosixPath(name).name == "data.pkl" for name in found):
        return "torch"
    if found and all(name.endswith(".npy") for name in found):
        return "npz"
    if {MANIFEST, VECTORS} <= found:
        return "brainpatch"
    return "folder" if any(file_suffix(name) in TENSOR_SUFFIXES for name in found) else "unknown"


def _kind_of_damaged(data: bytes) -> ZipKind:
    """The kind that the name of the first member suggests: `torch.save` writes its pickle first."""
    length = int.from_bytes(data[26:28], "little")
    return "torch" if data[30 : 30 + length].endswith(b"/data.pkl") else "unknown"


def _inflated(content: bytes, size: int) -> bytes:
    """At most one byte more than `size`, so that a bomb is seen before it goes off."""
    machine = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        found = machine.decompress(content, size + 1)
    except zlib.error:
        raise InvalidVector("the archive is damaged: its compressed data cannot be read") from None
    if len(found) > size or not machine.eof:
        raise InvalidVector("the archive's compressed data does not have the declared size")
    return found
