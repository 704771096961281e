"""PyTorch `.pt` archives that hold nothing but tensors in plain containers.

`archive.py` reads the archive without running anything; this module says what its content means. Layouts, by shape:

    [hidden]                    one direction (CAA, EasyEdit): the upload must say its `layer`
    [layers, hidden]            row L is block L (hidden-directions, hotwire, brainscope)
    [layers + 1, hidden]        row 0 is the embeddings, row L + 1 block L (persona_vectors)
    {layer: [hidden]}           keys are blocks
    {"layer_activations": {layer: [hidden]}, "layer_type": …}   the steering-vectors library

Rows of zeros in a stack are layers without a direction.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vectors.errors import InvalidVector
from vectors.formats.archive import read_archive
from vectors.formats.codec import Codec
from vectors.formats.options import ImportOptions
from vectors.vector import SteeringVector

_LAYER_KEY = re.compile(r"(?:layer[_.]?)?([0-9]{1,4})")
_LIBRARY_SITES = {
    "decoder_block": "residual",
    "self_attn": "attention",
    "mlp": "mlp",
    "post_attention_layernorm": "post_attention_norm",
}


def is_pytorch(data: bytes) -> bool:
    """True for zip archives and for bare pickles, which are recognised only to be rejected with a reason."""
    return data[:4] == b"PK\x03\x04" or (data[:1] == b"\x80" and data[1:2] in b"\x02\x03\x04\x05")


def decode_pytorch(
    data: bytes, options: ImportOptions, num_layers: int | None, hidden_size: int | None
) -> SteeringVector:
    """Read a `.pt` archive; the model's numbers are as for `decode`. Raises `InvalidVector`.

    Code in the file is never run.
    """
    options.refuse_convention()
    if data[:1] == b"\x80":
        raise InvalidVector("expected a file of torch.save of PyTorch 1.6 or later, got a bare pickle")
    return _interpret(read_archive(data), options, num_layers, hidden_size)


def _interpret(content: Any, options: ImportOptions, num_layers: int | None, hidden_size: int | None) -> SteeringVector:
    overrides = dict(options.overrides)
    notes: dict[str, Any] = {"format": "pt"}
    if isinstance(content, Tensor):
        directions = _from_tensor(content, options, num_layers, hidden_size, notes)
    elif isinstance(content, Mapping):
        options.refuse_layer("the file's keys give their layers")
        if "layer_activations" in content:
            layer_type = content.get("layer_type", "decoder_block")
            site = _LIBRARY_SITES.get(layer_type) if isinstance(layer_type, str) else None
            if site is None:
                given = repr(layer_type[:60]) if isinstance(layer_type, str) else f"a {type(layer_type).__name__}"
                known = ", ".join(_LIBRARY_SITES)
                raise InvalidVector(f"layer_type: expected one of {known}, got {given}", "layer_type")
            overrides.setdefault("site", site)
            content = content["layer_activations"]
        directions = _from_mapping(content, hidden_size)
        notes["convention"] = "keys are 0-based blocks: key L is the output of block L"
    else:
        raise InvalidVector(f"expected a tensor or a dict of tensors, got a {type(content).__name__}")
    own = overrides.pop("metadata", {})
    if not isinstance(own, dict):
        raise InvalidVector("metadata must be a JSON object", "metadata")
    return SteeringVector(directions, metadata={"import": notes} | own, **overrides)


def _from_tensor(
    tensor: Tensor, options: ImportOptions, num_layers: int | None, hidden_size: int | None, notes: dict[str, Any]
) -> dict[int, Tensor]:
    shape = list(tensor.shape)
    if len(shape) not in (1, 2):
        raise InvalidVector(f"expected a tensor of shape [hidden] or [layers, hidden], got {shape[:8]}")
    _check_size(tensor, hidden_size)
    if hidden_size is not None and shape[-1] != hidden_size:
        raise InvalidVector(f"the tensor has shape {shape[:8]}, but the model's hidden size is {hidden_size}")
    if len(shape) == 2 and num_layers is None:
        raise InvalidVector(
            f"the file has {shape[0]} rows, and the first may be the embeddings: "
            "pass the model's number of blocks as num_layers",
            "num_layers",
        )
    if len(shape) == 1 or (shape[0] == 1 and num_layers != 1):
        if options.layer is None:
            raise InvalidVector(
                'the file has one direction and does not say its layer; upload it with metadata {"layer": 12}',
                "layer",
            )
        notes["convention"] = "one direction, at the layer that the upload gave"
        return {options.layer: tensor.reshape(-1)}
    options.refuse_layer("the file has one row per layer")
    assert num_layers is not None
    if shape[0] == num_layers:
        notes["convention"] = "one row a block: row L is the output of block L"
        rows = tensor
    elif shape[0] == num_layers + 1:
        notes["convention"] = "row 0 is the embeddings and is left out: row L + 1 is the output of block L"
        rows = tensor[1:]
    else:
        raise InvalidVector(f"the tensor has {shape[0]} rows, but the model has {num_layers} blocks")
    zero = [layer for layer in range(num_layers) if not bool((rows[layer] != 0).any())]
    if len(zero) == num_layers:
        raise InvalidVector("every row is all zeros")
    if zero:
        notes["layers_without_direction"] = zero
    return {layer: rows[layer] for layer in range(num_layers) if layer not in zero}


def _from_mapping(content: object, hidden_size: int | None) -> dict[int, Tensor]:
    if not isinstance(content, Mapping) or not content:
        raise InvalidVector("the file has no directions")
    directions: dict[int, Tensor] = {}
    for key, tensor in content.items():
        match = _LAYER_KEY.fullmatch(str(key)) if isinstance(key, str | int) else None
        if match is None or isinstance(key, bool):
            raise InvalidVector(f"expected layers as keys, got {str(key)[:60]!r}")
        if not isinstance(tensor, Tensor):
            raise InvalidVector(f"the entry {str(key)[:60]!r} is not a tensor")
        _check_size(tensor, hidden_size)
        width = tensor.shape[-1] if hidden_size is None and tensor.dim() else hidden_size
        if tensor.dim() not in (1, 2) or tensor.numel() != width:
            raise InvalidVector(
                f"the entry {str(key)[:60]!r} has shape {list(tensor.shape)[:8]}, but the hidden size is {width}"
            )
        layer = int(match[1])
        if layer in directions:
            raise InvalidVector(f"layer {layer} appears twice")
        directions[layer] = tensor.reshape(-1)
    return directions


def _check_size(tensor: Tensor, hidden_size: int | None) -> None:
    """Raise for a tensor that repeats its numbers, unless the hidden size bounds it."""
    if hidden_size is None and tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise InvalidVector(f"a tensor of shape {list(tensor.shape)[:8]} is larger than the file's data")


CODEC = Codec(is_pytorch, decode_pytorch)
