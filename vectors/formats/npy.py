"""NumPy's `.npy` and `.npz`: one array, or arrays by name. NumPy's own readers, which can unpickle, are not used."""

from __future__ import annotations

import io

from torch import Tensor

from vectors.formats.arrays import tensor_of
from vectors.formats.codec import Codec
from vectors.formats.headers import NPY_MAGIC, read_npy_header
from vectors.formats.interpretation import Content, interpret
from vectors.formats.options import ImportOptions
from vectors.formats.zips import ZipMembers, zip_kind
from vectors.vector import SteeringVector


def read_npy(data: bytes) -> Tensor:
    """The array in a `.npy` file as a tensor. Raises `InvalidVector`."""
    header = read_npy_header(io.BytesIO(data))
    return tensor_of(header.code, header.order, header.shape, header.is_fortran, data[header.num_bytes :])


def read_npz(data: bytes) -> dict[str, Tensor]:
    """The arrays of a `.npz` file by name, without their suffix. Raises `InvalidVector`."""
    members = ZipMembers(data)
    return {name.removesuffix(".npy"): read_npy(members.read(name)) for name in members.names}


def is_numpy(data: bytes) -> bool:
    """True for an array, and for a zip of arrays."""
    return data.startswith(NPY_MAGIC) or zip_kind(data) == "npz"


def decode_numpy(
    data: bytes, options: ImportOptions, num_layers: int | None, hidden_size: int | None
) -> SteeringVector:
    """Read an array or arrays by name; the model's numbers are as for `decode`. Raises `InvalidVector`."""
    is_array = data.startswith(NPY_MAGIC)
    content = Content("npy", read_npy(data), {}) if is_array else Content("npz", read_npz(data), {})
    return interpret(content, options, num_layers, hidden_size)


def _container(data: bytes) -> str:
    return "NumPy .npy" if data.startswith(NPY_MAGIC) else "NumPy .npz"


CODEC = Codec(is_numpy, decode_numpy, _container)
