"""What every file format has to offer."""

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

    `recognises` tells the format by how a file begins. `decode` takes the bytes, what an upload says of them, and the
    number of blocks and the width of the model, each None where it is not known; it raises `InvalidVector`. `encode`,
    None where the format is only read, raises `InvalidVector` for a vector that it cannot hold.
    """

    recognises: Callable[[bytes], bool]
    decode: Callable[[bytes, ImportOptions, int | None, int | None], SteeringVector]
    encode: Callable[[SteeringVector], bytes] | None = None
