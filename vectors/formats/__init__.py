"""Bytes <-> SteeringVector. The format is told from the content, never from a name; no file can run code."""

from __future__ import annotations

from vectors.errors import InvalidVector, UnknownFormat
from vectors.formats.gguf import decode_gguf, encode_gguf, is_gguf
from vectors.formats.options import CONVENTIONS, ImportOptions
from vectors.formats.pytorch import decode_pytorch, is_pytorch
from vectors.formats.safetensors import decode_safetensors, encode_safetensors, is_safetensors
from vectors.vector import SteeringVector

__all__ = [
    "CONVENTIONS",
    "ImportOptions",
    "decode",
    "encode_gguf",
    "encode_safetensors",
]

_NO_OPTIONS = ImportOptions()


def decode(
    data: bytes,
    *,
    options: ImportOptions = _NO_OPTIONS,
    num_layers: int | None = None,
    hidden_size: int | None = None,
) -> SteeringVector:
    """Read a vector for a model of `num_layers` blocks and width `hidden_size` from a file's bytes.

    The model's numbers settle what a stack of rows in a `.pt` file means; None where they are not known, which only
    such a file needs. Whether the vector fits the model is asked by `SteeringVector.fit`. Raises `InvalidVector`
    (`UnknownFormat` when nothing recognises the bytes).
    """
    if not data:
        raise InvalidVector("the file is empty")
    if is_gguf(data):
        return decode_gguf(data, options)
    if is_safetensors(data):  # before pickles: a header of 640 bytes begins like one
        return decode_safetensors(data, options)
    if is_pytorch(data):
        return decode_pytorch(data, options, num_layers=num_layers, hidden_size=hidden_size)
    raise UnknownFormat(
        "the file is neither safetensors, GGUF (control vector) nor a PyTorch .pt archive; "
        "the canonical format is safetensors with tensors named residual.{layer}"
    )
