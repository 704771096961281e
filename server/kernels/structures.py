"""What the compiled kernels are given: the structures of `kernels.h` and `blocks.c`, filled from tensors.

A structure holds addresses; whoever makes one keeps the tensors for as long as it is used.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field

import torch
from torch import Tensor

WIDTH = 16
"""Outputs of a panel of packed weights, slots of a block of keys, and what a value's width is rounded up to."""

KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""The numbers of the dtypes of packed weights."""

_POINTER, _INT64, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float


class CacheLayout(ctypes.Structure):
    """Where a layer's KV is: `keys` `[kv_heads, blocks, key_dim, WIDTH]`, `values` `[kv_heads, blocks * WIDTH,
    value_width]`, float32."""

    _fields_ = (
        ("keys", _POINTER),
        ("values", _POINTER),
        *((name, _INT64) for name in ("blocks", "kv_heads", "key_dim", "value_dim", "value_width")),
    )


class Sight(ctypes.Structure):
    """`Views` for the kernels."""

    _fields_ = (
        *((name, _POINTER) for name in ("views", "tiles", "ranges", "slots")),
        ("num_tiles", _INT64),
        ("longest", _INT64),
    )


@dataclass(frozen=True, slots=True)
class Views:
    """What the query tokens of a step see, and where their own keys and values go; int64 tensors.

    `ranges` `[ranges, 2]`: slots `[first, last)`. `views` `[tokens, 6]`: the first and the last range (exclusive) of a
    token, the position of the first of their slots, the positions that it sees, from and to (exclusive), and the token
    of the pack whose new key and value it sees besides, or -1. `tiles` `[tiles + 1]`: where the tokens of each tile
    begin; the tokens of one have the same ranges. `longest`: the most positions that a tile sees. `slots` `[tokens]`:
    -1 where the KV is not kept.
    """

    ranges: Tensor
    views: Tensor
    tiles: Tensor
    slots: Tensor
    longest: int
    sight: Sight = field(init=False)

    def __post_init__(self) -> None:
        tensors = (self.views, self.tiles, self.ranges, self.slots)
        sight = Sight(*(tensor.data_ptr() for tensor in tensors), len(self.tiles) - 1, self.longest)
        object.__setattr__(self, "sight", sight)


class Matrix(ctypes.Structure):
    """Packed weights of one of `KINDS`, and a bias `[outputs]` float32 or null."""

    _fields_ = (("packed", _POINTER), ("bias", _POINTER), ("outputs", _INT64), ("kind", _INT64))

    @classmethod
    def of(cls, packed: Tensor, bias: Tensor | None, outputs: int) -> Matrix:
        """The matrix with `packed` weights of `outputs` outputs."""
        return cls(packed.data_ptr(), None if bias is None else bias.data_ptr(), outputs, KINDS[packed.dtype])


class BlockWeights(ctypes.Structure):
    """One decoder block. Norms are float32 `[hidden]`, those of queries and keys `[head_dim]` or null.

    `queries_keys_values` are the first `num_queries_keys_values`, `gate_up` the first `num_gate_up` matrices.
    """

    _fields_ = (
        ("queries_keys_values", Matrix * 3),
        ("output", Matrix),
        ("gate_up", Matrix * 2),
        ("down", Matrix),
        *((name, _POINTER) for name in ("input_norm", "query_norm", "key_norm", "post_attention_norm")),
        *((name, _INT64) for name in ("num_queries_keys_values", "num_gate_up")),
        *((name, _INT64) for name in ("hidden", "heads", "kv_heads", "head_dim", "inner")),
        *((name, _FLOAT) for name in ("input_epsilon", "query_epsilon", "key_epsilon", "post_attention_epsilon")),
        ("scale", _FLOAT),
    )


class BlocksPass(ctypes.Structure):
    """One pass through blocks; see `blocks.c`."""

    _fields_ = (
        *((name, _POINTER) for name in ("stream", "normed", "mixed", "attended", "inner", "output")),
        *((name, _POINTER) for name in ("cosines", "sines", "caches", "sights", "rows_of_tokens", "adds")),
        *((name, _POINTER) for name in ("steered", "places")),
        ("tokens", _INT64),
        ("rotary", _INT64),
    )


class SlotsLayout(ctypes.Structure):
    """The slots of a place's rows; see `kernels.h`."""

    _fields_ = (
        *((name, _POINTER) for name in ("reads", "writes", "numbers", "gates", "norm_gates")),
        *((name, _INT64) for name in ("stages", "rows", "width", "num_norm_gates")),
    )


class ReadingsLayout(ctypes.Structure):
    """What a place's rows read; see `kernels.h`."""

    _fields_ = (*((name, _POINTER) for name in ("units", "numbers", "columns")), ("width", _INT64))


class SteeredPack(ctypes.Structure):
    """The tokens of a step that are steered by more than a sum; see `kernels.h`."""

    _fields_ = (
        *((name, _POINTER) for name in ("row_of_token", "tokens", "reading_rows", "readings")),
        *((name, _INT64) for name in ("num_tokens", "count", "hidden", "columns")),
    )


class PlaceSteering(ctypes.Structure):
    """What is done at one place; see `kernels.h`."""

    _fields_ = tuple((name, _POINTER) for name in ("adds", "before", "slots", "after"))

    @classmethod
    def of(
        cls,
        adds: int | None,
        before: ReadingsLayout | None,
        slots: SlotsLayout | None,
        after: ReadingsLayout | None,
    ) -> PlaceSteering:
        """That of these layouts, which whoever uses it keeps; `adds`: the address of float32 `[rows, hidden]`."""
        return cls(adds, *(None if layout is None else ctypes.addressof(layout) for layout in (before, slots, after)))
