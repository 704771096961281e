"""NumPy's arrays from their parts, without NumPy's readers: a dtype's code, a shape and raw bytes -> a tensor.

Only plain numbers are read. Object arrays hold pickles, which NumPy would run; they are refused.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from vectors.errors import InvalidVector

_CODES = frozenset({"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "b1"})
_ORDERS = {"<": "<", "=": "<", "|": "<", ">": ">"}
_MAX_DIMENSIONS = 8


def tensor_of(code: str, order: str, shape: Sequence[int], is_fortran: bool, raw: bytes) -> Tensor:
    """The tensor of an array with dtype `code` (such as `f4`), byte order `order` and content `raw`.

    `is_fortran`: the first index varies fastest. Raises `InvalidVector` for other dtypes, and unless the shape needs
    exactly the bytes that are there.
    """
    if code.startswith("O"):
        raise InvalidVector("an array of objects holds a pickle; expected an array of numbers")
    if code not in _CODES or order not in _ORDERS:
        raise InvalidVector(f"an array's dtype: expected one of {', '.join(sorted(_CODES))}, got {order + code!r:.40}")
    if len(shape) > _MAX_DIMENSIONS or any(size < 0 for size in shape):
        raise InvalidVector(f"an array's shape: expected at most {_MAX_DIMENSIONS} sizes, got {list(shape)[:9]}")
    if not raw:
        raise InvalidVector("an array is empty")
    dtype = np.dtype(_ORDERS[order] + code)
    if math.prod(shape) * dtype.itemsize != len(raw):
        raise InvalidVector(f"an array of shape {list(shape)} does not have the bytes it needs; is the file truncated?")
    values = np.frombuffer(raw, dtype=dtype).reshape(tuple(shape), order="F" if is_fortran else "C")
    return torch.from_numpy(np.array(values, dtype=dtype.newbyteorder("="), order="C"))
