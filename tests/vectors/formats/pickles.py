"""`.pt` archives made by hand, so that any part of them can be false."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Mapping
from typing import Any

import torch

FOUR = struct.pack("<4f", 1, 2, 3, 4)


def saved(value: Any) -> bytes:
    """What `torch.save` writes."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def archive(
    pickle: bytes,
    records: Mapping[str, bytes] = {"0": FOUR},
    *,
    compression: int = zipfile.ZIP_STORED,
    extra: Mapping[str, bytes] | None = None,
    byteorder: bytes = b"little",
) -> bytes:
    """The members that torch.save writes, around a pickle (its operations without header and end)."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        file.writestr("archive/data.pkl", b"\x80\x02" + pickle + b".")
        file.writestr("archive/byteorder", byteorder)
        for key, content in records.items():
            file.writestr(f"archive/data/{key}", content)
        file.writestr("archive/version", b"3\n")
        for name, content in (extra or {}).items():
            file.writestr(name, content)
    return buffer.getvalue()


def text(value: str) -> bytes:
    """BINUNICODE."""
    encoded = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def number(value: int) -> bytes:
    """BININT, or LONG1 for what is larger."""
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    digits = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(digits)]) + digits


def group(*items: bytes) -> bytes:
    """TUPLE of the items."""
    return b"(" + b"".join(items) + b"t"


def name(text: str) -> bytes:
    """GLOBAL of `module name`."""
    return b"c" + text.replace(" ", "\n").encode() + b"\n"


def storage(key: str = "0", length: int = 4, kind: str = "torch FloatStorage", device: str = "cpu") -> bytes:
    """A persistent id."""
    return group(text("storage"), name(kind), text(key), text(device), number(length)) + b"Q"


def rebuilt(
    of: bytes, size: tuple[int, ...] = (4,), stride: tuple[int, ...] = (1,), offset: int = 0, more: bytes = b""
) -> bytes:
    """A tensor over a storage."""
    hooks = name("collections OrderedDict") + b")R"
    sizes, strides = group(*map(number, size)), group(*map(number, stride))
    return (
        name("torch._utils _rebuild_tensor_v2") + group(of, number(offset), sizes, strides, b"\x89", hooks, more) + b"R"
    )


TENSOR = rebuilt(storage())
