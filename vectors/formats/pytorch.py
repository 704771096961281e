"""PyTorch `.pt` archives that hold nothing but tensors in plain containers.

`archive.py` reads the archive without running anything; `interpretation.py` says what its content means.
"""

from __future__ import annotations

from vectors.errors import InvalidVector
from vectors.formats.archive import read_archive
from vectors.formats.codec import Codec
from vectors.formats.interpretation import Content, interpret
from vectors.formats.options import ImportOptions
from vectors.vector import SteeringVector


def is_pytorch(data: bytes) -> bool:
    """True for zip archives and for bare pickles, which are recognised only to be rejected with a reason."""
    return data[:4] == b"PK\x03\x04" or (data[:1] == b"\x80" and data[1:2] in b"\x02\x03\x04\x05")


def decode_pytorch(
    data: bytes, options: ImportOptions, num_layers: int | None, hidden_size: int | None
) -> SteeringVector:
    """Read a `.pt` archive; the model's numbers are as for `decode`. Raises `InvalidVector`.

    Code in the file is never run.
    """
    if data[:1] == b"\x80":
        raise InvalidVector("expected a file of torch.save of PyTorch 1.6 or later, got a bare pickle")
    content = Content("pt", "PyTorch .pt", read_archive(data), {})
    return interpret(content, options, num_layers, hidden_size)


CODEC = Codec(is_pytorch, decode_pytorch)
