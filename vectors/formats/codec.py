"""The functions that every file format provides."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vectors.formats.options import ImportOptions

if TYPE_CHECKING:
    from vectors.vector import SteeringVector


@dataclass(frozen=True, slots=True)
class Codec:
    """One format's functions over a file's bytes.

    `recognises` tells the format by how a file begins. `decode` takes the bytes, the options of an upload, and the
    model's number of blocks and width, each None if unknown; it raises `InvalidVector`. `container` is what a file is
    called in those errors, such as `GGUF (architecture llama)`: it depends on the bytes alone. `encode`, None for a
    format that is only read, raises `InvalidVector` for a vector that the format cannot store.
    """

    recognises: Callable[[bytes], bool]
    decode: Callable[[bytes, ImportOptions, int | None, int | None], SteeringVector]
    container: Callable[[bytes], str]
    encode: Callable[[SteeringVector], bytes] | None = None
