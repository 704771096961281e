"""The compiled kernels as functions of CPU tensors.

Shapes and dtypes are the caller's care: a wrong one is an assertion here, since C would read beyond the tensor.
"""

from __future__ import annotations

import ctypes
import functools
import logging
from typing import Any

import torch
from torch import Tensor

from server.kernels.building import built_library
from server.kernels.structures import (
    KINDS,
    WIDTH,
    BlocksPass,
    BlockWeights,
    CacheLayout,
    PlaceSteering,
    SteeredPack,
    Views,
)

_log = logging.getLogger(__name__)

_POINTER, _LONG, _FLOAT = ctypes.c_void_p, ctypes.c_long, ctypes.c_float
_SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "tiller_has_float16": (ctypes.c_int, ()),
    "tiller_pack": (None, (_POINTER, _LONG, _LONG, _LONG, _POINTER)),
    "tiller_unpack": (None, (_POINTER, _LONG, _LONG, _LONG, _POINTER)),
    "tiller_linear": (
        None,
        (_POINTER, _LONG, _LONG, _POINTER, ctypes.c_int, _LONG, _POINTER, _POINTER),
    ),
    "tiller_rms_norm": (None, (_POINTER, _LONG, _LONG, _POINTER, _FLOAT, _POINTER)),
    "tiller_write": (None, (_POINTER, *(_POINTER, _LONG, _LONG) * 2, _POINTER, _LONG)),
    "tiller_attend": (
        ctypes.c_int,
        (
            _POINTER, _POINTER, _POINTER, _LONG, _LONG, _LONG, *(_POINTER, _LONG, _LONG) * 2, _FLOAT, _FLOAT, _POINTER,
            _POINTER,
        ),
    ),
    "tiller_blocks": (ctypes.c_int, (_POINTER, _POINTER, _LONG, _LONG)),
    "tiller_steer": (None, (_POINTER,) * 3),
}  # fmt: skip


class Kernels:
    """The functions of one compiled library. All tensors are on the CPU; activations are float32 and contiguous."""

    def __init__(self, library: ctypes.CDLL) -> None:
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
        self._library = library
        self._linear, self._rms_norm = library.tiller_linear, library.tiller_rms_norm
        self._write, self._attend = library.tiller_write, library.tiller_attend
        self._steer = library.tiller_steer
        self.dtypes = frozenset(KINDS if library.tiller_has_float16() else set(KINDS) - {torch.float16})
        """The dtypes of weights that can be multiplied."""

    def pack(self, weight: Tensor) -> Tensor:
        """`[outputs, inputs]` -> `[panels, inputs, WIDTH]` of the same dtype; missing outputs are zero."""
        outputs, inputs = weight.shape
        weight = weight.detach().contiguous()
        packed = torch.empty(-(-outputs // WIDTH), inputs, WIDTH, dtype=weight.dtype)
        self._library.tiller_pack(weight.data_ptr(), outputs, inputs, weight.element_size(), packed.data_ptr())
        return packed

    def unpack(self, packed: Tensor, outputs: int) -> Tensor:
        """The weight `[outputs, inputs]` that `pack` was given."""
        inputs = packed.shape[1]
        weight = torch.empty(outputs, inputs, dtype=packed.dtype)
        self._library.tiller_unpack(packed.data_ptr(), outputs, inputs, packed.element_size(), weight.data_ptr())
        return weight

    def linear(self, x: Tensor, packed: Tensor, outputs: int, bias: Tensor | None = None) -> Tensor:
        """`[rows, inputs]` -> `[rows, outputs]`: `x @ weight.T + bias`."""
        rows, inputs = x.shape
        assert (x.dtype, x.is_contiguous(), inputs) == (torch.float32, True, packed.shape[1]), (x.shape, packed.shape)
        y = torch.empty(rows, outputs)
        self._linear(
            x.data_ptr(), rows, inputs, packed.data_ptr(), KINDS[packed.dtype], outputs,
            None if bias is None else bias.data_ptr(), y.data_ptr(),
        )  # fmt: skip
        return y

    def rms_norm(self, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """`[..., width]`: each row over its root mean square, times `weight` `[width]`, float32."""
        assert (x.dtype, x.is_contiguous(), x.shape[-1:]) == (torch.float32, True, weight.shape), x.shape
        y = torch.empty_like(x)
        width = x.shape[-1]
        self._rms_norm(x.data_ptr(), x.numel() // width, width, weight.data_ptr(), epsilon, y.data_ptr())
        return y

    def write(self, layout: CacheLayout, keys: Tensor, values: Tensor, slots: Tensor) -> None:
        """Put new `keys` and `values` `[kv_heads, tokens, dim]` in `slots` int64 `[tokens]`; -1 is not kept."""
        keys, values = _rows(keys), _rows(values)
        self._write(
            ctypes.byref(layout), keys.data_ptr(), keys.stride(0), keys.stride(1),
            values.data_ptr(), values.stride(0), values.stride(1), slots.data_ptr(), len(slots),
        )  # fmt: skip

    def attend(
        self,
        layout: CacheLayout,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        views: Views,
        scale: float,
        softcap: float | None,
        sinks: Tensor | None,
    ) -> Tensor:
        """Queries `[heads, tokens, key_dim]` over the KV that each sees -> `[tokens, heads, value_dim]`.

        `keys` and `values` `[kv_heads, tokens, dim]` are the pack's own. `sinks` float32 `[heads]`. Raises
        `MemoryError`.
        """
        queries, keys, values = _rows(queries), _rows(keys), _rows(values)
        heads, tokens, _ = queries.shape
        output = torch.empty(tokens, heads, int(layout.value_dim))
        failed = self._attend(
            ctypes.byref(layout), ctypes.byref(views.sight), queries.data_ptr(), queries.stride(0), queries.stride(1),
            heads, keys.data_ptr(), keys.stride(0), keys.stride(1), values.data_ptr(), values.stride(0),
            values.stride(1), scale, softcap or 0.0, None if sinks is None else sinks.data_ptr(), output.data_ptr(),
        )  # fmt: skip
        if failed:
            raise MemoryError("there is no memory left for the logits of the attention")
        return output

    def blocks(self, weights: ctypes.Array[BlockWeights], given: BlocksPass, first: int, last: int) -> None:
        """Compute the places `[first, last)` of a pass, counted through all blocks; see `blocks.c`. Raises
        `MemoryError`."""
        if self._library.tiller_blocks(weights, ctypes.byref(given), first, last):
            raise MemoryError("there is no memory left for the logits of the attention")

    def steer(self, pack: SteeredPack, place: PlaceSteering, x: Tensor) -> None:
        """Read, steer and read again the tokens of `pack` at one place, where they are `x` `[tokens, hidden]`."""
        assert (x.dtype, x.is_contiguous(), x.shape) == (torch.float32, True, (pack.num_tokens, pack.hidden)), x.shape
        self._steer(ctypes.byref(pack), ctypes.byref(place), x.data_ptr())


def _rows(tensor: Tensor) -> Tensor:
    """The tensor with the numbers of a row beside each other."""
    assert tensor.dtype is torch.float32, tensor.dtype
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


@functools.cache
def load_kernels() -> Kernels | None:
    """The kernels, compiled at the first call; None, with the reason in the log, where that is not possible."""
    path = built_library()
    if path is None:
        return None
    try:
        return Kernels(ctypes.CDLL(str(path)))
    except (OSError, AttributeError) as error:
        _log.warning("the compiled kernels cannot be loaded, so PyTorch's own are used: %s", error)
        return None
