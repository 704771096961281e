"""PyTorch `.pt` archives that hold nothing but tensors in plain containers.

`archive.py` reads the archive without running anything; `interpretation.py` says what its content means.
"""

from __future__ import annotations

from vectors.errors import InvalidVector
from vectors.formats.archive import read_archive
from vectors.formats.codec import Codec
from vectors.formats.interpretation import Content, interpret
from vectors.formats.options import ImportOptions
from vectors.formats.zips import zip_kind
from vectors.vector import SteeringVector


def is_pytorch(data: bytes) -> bool:
    """True for archives of `torch.save`, and for bare pickles, which are recognised only to be refused."""
    return _is_pickle(data) or zip_kind(data) == "torch"


def decode_pytorch(
    data: bytes, options: ImportOptions, num_layers: int | None, hidden_size: int | None
) -> SteeringVector:
    """Read a `.pt` archive; the model's numbers are as for `decode`. Raises `InvalidVector`.

    Code in the file is never run.
    """
    if _is_pickle(data):
        raise InvalidVector(
            "a pickle may run code, so it is not read; expected a file of torch.save of PyTorch 1.6 or later"
        )
    return interpret(Content("pt", read_archive(data), {}), options, num_layers, hidden_size)


def _is_pickle(data: bytes) -> bool:
    return data[:1] == b"\x80" and data[1:2] in (b"\2", b"\3", b"\4", b"\5")


def _container(data: bytes) -> str:
    return "bare pickle" if _is_pickle(data) else "PyTorch .pt"


CODEC = Codec(is_pytorch, decode_pytorch, _container)
