"""SteeringVector: immutable directions by layer, with their defaults and where they came from.

The revision is the hash of the content, so equal content has the same revision everywhere, whatever its name and time.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any, Self

import torch
from torch import Tensor

from vectors.calibration_record import Calibration
from vectors.defaults import DEFAULTS, VectorDefaults
from vectors.errors import InvalidPositions, InvalidVector
from vectors.positions import Window, checked_positions
from vectors.vocabulary import (
    ACTIVATIONS,
    DEFAULT_LAYERS_CHOICES,
    MAX_DESCRIPTION,
    MAX_LAYER,
    MAX_METADATA_BYTES,
    MAX_METADATA_DEPTH,
    MAX_MODEL_ID,
    MAX_RANK,
    OPERATIONS,
    PARTS,
    SITES,
    Part,
)

DTYPES: Mapping[torch.dtype, str] = MappingProxyType(
    {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}
)
"""The dtypes that a direction may have, with their names."""

_LATER = ("parts", "default_layers", "activation", "min", "max", "threshold", "max_scale", "calibration")
"""Defaults that files did not have at first: left out where they are not set, so older files keep their revision."""


@dataclass(frozen=True, eq=False)
class SteeringVector(VectorDefaults):
    """Directions at one site, with their defaults.

    `directions`: layer (0-based decoder block) -> CPU tensor `[hidden]`, float32, float16 or bfloat16, kept as given
    (iterates in the order of layers). With `reads`, read directions of its own (as `directions`, for all layers or for
    none), a vector may have several directions a layer, `[rank, hidden]`; `biases` `[rank]` go with them. The vector
    reads `activation(h·read + bias)`, see `operations.py`.

    `default_scale`, `operation`, `positions` (given as a name, or as the JSON object of a window) and `parts` (of the
    response, in the order of `PARTS`) apply unless a request overrides them; `min` and `max` are the interval of `cap`.
    `metadata` is the owner's JSON, `training` the record of how the vector was made, `calibration` that of how strong
    it may be, `model` what it was made for. Raises `InvalidVector` naming what is wrong and where.
    """

    directions: Mapping[int, Tensor]
    reads: Mapping[int, Tensor] = field(default_factory=dict)
    biases: Mapping[int, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_choice("site", self.site, SITES)
        _check_choice("operation", self.operation, OPERATIONS)
        try:
            object.__setattr__(self, "positions", checked_positions(self.positions))
        except InvalidPositions as error:
            raise InvalidVector(f"positions: {error}", "positions") from None
        _check_choice("default_layers", self.default_layers, DEFAULT_LAYERS_CHOICES)
        _check_choice("activation", self.activation, ACTIVATIONS)
        for name in ("min", "max", "threshold"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _finite(name, getattr(self, name)))
        if self.min is not None and self.max is not None and self.min > self.max:
            raise InvalidVector(f"expected min at most max, got {self.min:g} and {self.max:g}", "min")
        object.__setattr__(self, "parts", checked_parts(self.parts))
        object.__setattr__(self, "default_scale", _finite("default_scale", self.default_scale))
        for name, text, longest in (
            ("description", self.description, MAX_DESCRIPTION),
            ("model", self.model, MAX_MODEL_ID),
        ):
            if not (isinstance(text, str) or (name == "model" and text is None)):
                raise InvalidVector(f"{name} must be text", name)
            if text is not None and (len(text) > longest or not _is_encodable(text)):
                raise InvalidVector(f"{name} must be valid Unicode of at most {longest} characters", name)
        object.__setattr__(self, "metadata", _frozen_json("metadata", self.metadata))
        if self.max_scale is not None:
            object.__setattr__(self, "max_scale", _finite("max_scale", self.max_scale))
            if self.max_scale <= 0:
                raise InvalidVector(f"max_scale: expected a number above 0, got {self.max_scale:g}", "max_scale")
        if self.training is not None:
            object.__setattr__(self, "training", _frozen_json("training", self.training))
        if self.calibration is not None:
            object.__setattr__(self, "calibration", _frozen_json("calibration", self.calibration))
            Calibration.from_json(self.calibration)
        object.__setattr__(self, "directions", _checked_directions(self.directions, self.site, bool(self.reads)))
        object.__setattr__(self, "reads", _checked_reads(self.reads, self.directions, self.site))
        object.__setattr__(self, "biases", _checked_biases(self.biases, self.reads, self.site))

    def __eq__(self, other: object) -> bool:
        return self.revision == other.revision if isinstance(other, SteeringVector) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.revision)

    @property
    def hidden_size(self) -> int:
        """Width of every direction."""
        return int(next(iter(self.directions.values())).shape[-1])

    @property
    def rank(self) -> int:
        """The most directions at one layer."""
        return max(1 if direction.dim() == 1 else direction.shape[0] for direction in self.directions.values())

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers that have a direction, ascending."""
        return tuple(self.directions)

    @cached_property
    def norms(self) -> dict[int, float]:
        """Euclidean norm of each direction."""
        return {layer: float(direction.double().norm()) for layer, direction in self.directions.items()}

    @cached_property
    def calibrated(self) -> Calibration | None:
        """What requests need of `calibration`."""
        return None if self.calibration is None else Calibration.from_json(self.calibration)

    @property
    def defaults(self) -> dict[str, Any]:
        """Everything except the directions, as JSON; the canonical file keeps it under `steering_vector`.

        What older files do not have is included only if it differs from the default, so that they keep their revision.
        """
        return {
            row.name: _plain(getattr(self, row.name))
            for row in DEFAULTS
            if row.name not in _LATER or getattr(self, row.name) != row.default
        }

    @cached_property
    def revision(self) -> str:
        """SHA-256 (64 hex digits) of the content: the defaults; each tensor's layer, dtype, shape and bytes."""
        digest = hashlib.sha256(b"tiller steering vector 1\n")
        digest.update(canonical_json(self.defaults).encode())
        for layer, direction in self.directions.items():
            shape = "x".join(map(str, direction.shape))
            digest.update(f"\n{layer} {DTYPES[direction.dtype]} {shape}\n".encode())
            digest.update(raw_bytes(direction))
        for kind, tensors in (("read", self.reads), ("bias", self.biases)):
            for layer, tensor in tensors.items():
                shape = "x".join(map(str, tensor.shape))
                digest.update(f"\n{layer} {kind} {DTYPES[tensor.dtype]} {shape}\n".encode())
                digest.update(raw_bytes(tensor))
        return digest.hexdigest()

    def with_defaults(self, **changes: Any) -> Self:
        """The same directions with other defaults or descriptions; raises `InvalidVector`."""
        return replace(self, **changes)

    def fit(self, num_layers: int, hidden_size: int, sites: Collection[str]) -> None:
        """Raise `InvalidVector` unless this vector can steer a model with these properties."""
        if self.hidden_size != hidden_size:
            raise InvalidVector(f"the directions have hidden size {self.hidden_size}, but the model has {hidden_size}")
        outside = [layer for layer in self.layers if layer >= num_layers]
        if outside:
            raise InvalidVector(
                f"layers {outside[:8]} are outside the model, which has blocks 0 to {num_layers - 1}",
                f"{self.site}.{outside[0]}",
            )
        if self.site not in sites:
            raise InvalidVector(f"this model has no site {self.site!r}; its sites are {', '.join(sites)}", "site")


def canonical_json(value: Any) -> str:
    """The canonical text of a JSON value: keys sorted, no spaces, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def raw_bytes(direction: Tensor) -> bytes:
    """Little-endian bytes of a tensor, whatever its dtype."""
    return direction.contiguous().view(torch.uint8).numpy().tobytes()


def _plain(value: object) -> object:
    """A field as a JSON value."""
    if isinstance(value, Window):
        return value.to_json()
    if isinstance(value, Mapping):
        return dict(value)
    return list(value) if isinstance(value, tuple) else value


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices or not isinstance(value, str):
        raise InvalidVector(f"{name}: expected one of {', '.join(choices)}, got {value!r:.60}", name)


def checked_parts(value: object) -> tuple[Part, ...]:
    """`value`, a list of some of `PARTS`, in their order; raises `InvalidVector` naming `parts`."""
    if (
        not isinstance(value, list | tuple)
        or not value
        or not all(isinstance(part, str) and part in PARTS for part in value)
        or len(set(value)) != len(value)
    ):
        given = list(value) if isinstance(value, tuple) else value
        raise InvalidVector(f"parts: expected some of {', '.join(PARTS)}, each once, got {given!r:.60}", "parts")
    return tuple(part for part in PARTS if part in value)


def _finite(name: str, value: object) -> float:
    try:
        number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    except OverflowError:  # an integer too large for a float
        number = math.inf
    if not math.isfinite(number):
        what = f"{value!r:.40}" if isinstance(value, float) else type(value).__name__
        raise InvalidVector(f"{name}: expected a finite number, got {what}", name)
    return number


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _frozen_json(name: str, value: object) -> Mapping[str, Any]:
    """A private, read-only copy of a JSON object."""
    if not isinstance(value, Mapping):
        raise InvalidVector(f"{name} must be a JSON object", name)
    try:
        text = canonical_json(dict(value))
        frozen = json.loads(text)
        json.dumps(frozen, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError):
        raise InvalidVector(f"{name} must be a JSON object with finite numbers and valid Unicode", name) from None
    if len(text) > MAX_METADATA_BYTES:
        raise InvalidVector(f"{name} is larger than {MAX_METADATA_BYTES} bytes", name)
    if _is_deeper(frozen, MAX_METADATA_DEPTH):
        raise InvalidVector(f"{name} is nested more than {MAX_METADATA_DEPTH} deep", name)
    return MappingProxyType(frozen)


def _is_deeper(value: object, levels: int) -> bool:
    """True when lists and objects in `value` are nested more than `levels` deep."""
    if not isinstance(value, dict | list):
        return False
    entries = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_is_deeper(entry, levels - 1) for entry in entries)


def _checked_directions(directions: object, site: str, has_reads: bool) -> Mapping[int, Tensor]:
    if not isinstance(directions, Mapping) or not directions:
        raise InvalidVector("expected at least one direction, got none", "directions")
    checked: dict[int, Tensor] = {}
    for layer in directions:
        if isinstance(layer, bool) or not isinstance(layer, int) or not 0 <= layer <= MAX_LAYER:
            what = layer if isinstance(layer, int) and -(2**63) < layer < 2**63 else type(layer).__name__
            raise InvalidVector(f"expected layers from 0 to {MAX_LAYER}, got {what}", "directions")
    for layer in sorted(directions):
        name = f"{site}.{layer}"
        checked[layer] = _checked_direction(directions[layer], name)
        shape = list(checked[layer].shape)
        if len(shape) > 1 and not has_reads:
            raise InvalidVector(
                f"direction {name}: expected shape [hidden] where there are no read directions, got {shape}",
                name,
            )
    widths = {direction.shape[-1] for direction in checked.values()}
    if len(widths) > 1:
        raise InvalidVector(f"the directions have different hidden sizes: {sorted(widths)[:8]}", "directions")
    return MappingProxyType(checked)


def _checked_reads(reads: object, directions: Mapping[int, Tensor], site: str) -> Mapping[int, Tensor]:
    """Read directions for every layer or for none."""
    if not isinstance(reads, Mapping) or not set(reads) <= set(directions):
        raise InvalidVector("expected read directions at layers that have directions", "reads")
    missing = [layer for layer in directions if layer not in reads]
    if reads and missing:
        raise InvalidVector(f"there is no read direction at layer {missing[0]}", f"{site}.{missing[0]}.read")
    checked: dict[int, Tensor] = {}
    for layer, direction in directions.items():
        name = f"{site}.{layer}.read"
        if reads:
            checked[layer] = _checked_direction(reads[layer], name)
            if checked[layer].shape != direction.shape:
                raise InvalidVector(
                    f"{name}: expected the shape of {site}.{layer}, {list(direction.shape)}, got "
                    f"{list(checked[layer].shape)}",
                    name,
                )
    return MappingProxyType(checked)


def _checked_biases(biases: object, reads: Mapping[int, Tensor], site: str) -> Mapping[int, Tensor]:
    if not isinstance(biases, Mapping) or not set(biases) <= set(reads):
        raise InvalidVector("expected biases at layers that have read directions", "biases")
    checked: dict[int, Tensor] = {}
    for layer in sorted(biases):
        name = f"{site}.{layer}.bias"
        bias = _dense("bias", biases[layer], name).reshape(-1)
        rank = 1 if reads[layer].dim() == 1 else reads[layer].shape[0]
        if bias.shape != (rank,):
            raise InvalidVector(f"{name}: expected {rank} numbers, got {bias.shape[0]}", name)
        checked[layer] = bias.cpu().contiguous().clone()
    return MappingProxyType(checked)


def _dense(kind: str, tensor: object, name: str) -> Tensor:
    """A finite tensor of one of `DTYPES`."""
    if not isinstance(tensor, Tensor) or tensor.layout is not torch.strided or tensor.is_meta:
        raise InvalidVector(f"{kind} {name} is not a dense tensor", name)
    if tensor.dtype not in DTYPES:
        found = str(tensor.dtype).removeprefix("torch.")
        raise InvalidVector(f"{kind} {name}: expected one of {', '.join(DTYPES.values())}, got {found}", name)
    tensor = tensor.detach()
    finite = torch.isfinite(tensor.reshape(-1))
    if not bool(finite.all()):
        index = int((~finite).nonzero()[0])
        what = "NaN" if bool(torch.isnan(tensor.reshape(-1)[index])) else "infinity"
        raise InvalidVector(f"{kind} {name} contains {what} at index {index}", name)
    return tensor


def _checked_direction(direction: object, name: str) -> Tensor:
    if isinstance(direction, Tensor) and direction.layout is torch.strided and direction.dtype in DTYPES:
        shape = list(direction.shape)
        if len(shape) not in (1, 2) or 0 in shape or (len(shape) == 2 and shape[0] > MAX_RANK):
            raise InvalidVector(
                f"direction {name}: expected shape [hidden] or [rank, hidden] of rank at most {MAX_RANK}, got {shape}",
                name,
            )
    dense = _dense("direction", direction, name)
    if not bool((dense != 0).any(-1).all()):
        raise InvalidVector(f"direction {name} is all zeros", name)
    for norm in dense.double().norm(dim=-1).reshape(-1).tolist():
        if not 0.0 < norm < float(torch.finfo(torch.float32).max):
            raise InvalidVector(f"direction {name} has norm {norm}, outside the range of float32", name)
    return dense.cpu().contiguous().clone()
