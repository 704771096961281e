"""The last step of reading any file: directions by layer, and what the upload asked for -> a vector.

Selection of layers, the layer that was read behind the final norm, and the note under `import` are the same for every
format.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from vectors.errors import InvalidVector
from vectors.formats.options import ImportOptions
from vectors.vector import SteeringVector

_NONE: Mapping[int, Tensor] = MappingProxyType({})


def make_vector(
    directions: Mapping[int, Tensor],
    options: ImportOptions,
    notes: Mapping[str, Any],
    own: Mapping[str, Any] | None = None,
    *,
    reads: Mapping[int, Tensor] = _NONE,
    biases: Mapping[int, Tensor] = _NONE,
    behind_norm: int | None = None,
    uses_one_layer: bool = False,
) -> SteeringVector:
    """A vector of `directions`, with `notes` under `import` in its metadata.

    `reads` and `biases` as in `SteeringVector`. `own` are the file's own defaults, which the upload's overrides
    replace. `behind_norm` is a layer whose direction was read behind the final norm: it is left out unless the upload
    names it. `uses_one_layer`: the file's library applies one layer at a time, so requests must name theirs. Raises
    `InvalidVector`.
    """
    noted = dict(notes)
    defaults: dict[str, Any] = dict(own or {})
    kept = dict(directions)
    if options.asked is not None:
        missing = [layer for layer in options.asked if layer not in kept]
        if missing:
            raise InvalidVector(
                f"the file has no direction for layers {shown(missing)}; its layers are {shown(sorted(kept))}",
                "layer" if options.layers is None else "layers",
            )
        if len(kept) > 1:
            noted["selected"] = f"layers {shown(options.asked)} of {len(kept)}, as the upload asked"
        kept = {layer: kept[layer] for layer in options.asked}
    elif behind_norm in kept and len(kept) > 1:
        del kept[behind_norm]
        noted["left_out"] = (
            f"layer {behind_norm}, the last one: some libraries that write this layout read it behind the final norm; "
            "name it in layers to keep it"
        )
    if uses_one_layer and options.asked is None and len(kept) > 1:
        defaults["default_layers"] = "none"
        noted["use"] = "libraries that write this layout apply one layer at a time: requests must name layers"
    if any(direction.dtype == torch.float64 for direction in kept.values()):
        kept = {layer: direction.to(torch.float32) for layer, direction in kept.items()}
        noted["converted"] = "float64 to float32"
    defaults |= options.overrides
    metadata = defaults.pop("metadata", {})
    if not isinstance(metadata, Mapping):
        raise InvalidVector("metadata must be a JSON object", "metadata")
    read, bias = ({layer: each[layer] for layer in kept if layer in each} for each in (reads, biases))
    return SteeringVector(kept, read, bias, metadata={"import": noted} | dict(metadata), **defaults)


def shown(layers: Sequence[int]) -> str:
    """The layers as messages show them, at most the first 16."""
    text = ", ".join(map(str, layers[:16]))
    return text if len(layers) <= 16 else f"{text}, … ({len(layers)} in all)"
