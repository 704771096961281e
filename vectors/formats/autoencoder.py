"""One feature of a sparse autoencoder as the file of a steering vector: a row of its decoder, and where it belongs.

Two layouts are read, from this machine's disk: a folder of SAELens (`cfg.json` and `sae_weights.safetensors`), and
`params.npz` of Gemma Scope (Lieberum et al. 2024), whose path names the layer. Only the row is read. Neither torch nor
NumPy is needed, so a client can send a feature without them.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vectors.errors import InvalidVector
from vectors.formats.array_rows import Row, read_npz_row, read_safetensors_row
from vectors.formats.headers import DEFAULTS_KEY, METADATA
from vectors.formats.hooks import place_of
from vectors.formats.json_object import MAX_JSON_BYTES, read_object
from vectors.vocabulary import Site

_DECODER = "W_dec"
_CONFIG, _WEIGHTS, _PARAMETERS = "cfg.json", "sae_weights.safetensors", "params.npz"

_ARCHITECTURES = (
    "standard", "gated", "topk", "abstopk", "jumprelu", "batchtopk", "matryoshka_batchtopk", "matching_pursuit",
)  # fmt: skip
"""Those that decode to where they read, as a sum of the decoder's rows."""

_RESCALED = ("expected_average_only_in", "constant_norm_rescale", "constant_scalar_rescale", "layer_norm")
"""Normalisations that keep a row's direction and change only what its length means."""

_SCOPE_LAYER = re.compile(r"layer_([0-9]{1,4})")
_SCOPE_KIND = re.compile(r"gemma-scope-[a-z0-9.]+-(?:pt|it)-([a-z]+)")


@dataclass(frozen=True, slots=True)
class Feature:
    """A feature's row of the decoder, as understood.

    `layer` is the block and `site` the place in it where the row is added, `length` the row's Euclidean norm.
    `content` is a file in the canonical format, and `notes` what it has under `import` in its metadata.
    """

    site: Site
    layer: int
    length: float
    notes: Mapping[str, Any]
    content: bytes

    @property
    def summary(self) -> str:
        """What was understood, in a line."""
        notes = self.notes
        return (
            f"{notes['source']}, feature {notes['feature']}: {self.site} at layer {self.layer} "
            f"({notes['convention']}), length {self.length:.4g}"
        )


@dataclass(frozen=True, slots=True)
class _Place:
    site: Site
    layer: int
    convention: str


def read_feature(path: Path, feature: int, *, layer: int | None = None, unit_norm: bool = False) -> Feature:
    """Feature `feature`, counted from 0, of the autoencoder in a folder of SAELens or a `params.npz` of Gemma Scope.

    `layer` is the block to steer, if the files do not say it or another one is meant. `unit_norm` scales the row to
    length 1. That is needed for an autoencoder that normalises its activations: the length of its rows is not that of
    the model's activations. Raises `InvalidVector` for what cannot be added to a site, and `OSError`.
    """
    if path.is_dir() and (path / _CONFIG).is_file():
        return _of_saelens(path, feature, layer, unit_norm)
    parameters = path / _PARAMETERS if path.is_dir() else path
    if parameters.suffix == ".npz" and (parameters.is_file() or not path.is_dir()):
        return _of_gemma_scope(parameters, feature, layer, unit_norm)
    raise InvalidVector(
        f"{path}: expected a folder of SAELens with {_CONFIG} and {_WEIGHTS}, or {_PARAMETERS} of Gemma Scope"
    )


def _of_saelens(folder: Path, feature: int, layer: int | None, unit_norm: bool) -> Feature:
    config = _read_config(folder / _CONFIG)
    inner = config.get("metadata")
    facts = config | (inner if isinstance(inner, dict) else {})
    architecture = config.get("architecture", "standard")
    if architecture not in _ARCHITECTURES:
        raise InvalidVector(
            f"{_CONFIG}: the architecture is {architecture!r:.60}, whose decoder's rows are not directions where it "
            f"reads; expected one of {', '.join(_ARCHITECTURES)}",
            "architecture",
        )
    hook = facts.get("hook_name") or facts.get("hook_point") or facts.get("hf_hook_name")
    model = facts.get("model_name")
    if facts.get("hook_head_index") is not None or config.get("reshape_activations") not in (None, "none"):
        raise InvalidVector(f"{_CONFIG}: it reads single attention heads ({hook!r:.80}), which is no site", "hook_name")
    place = _place_of(hook, model if isinstance(model, str) else None, layer)
    normalisation = config.get("normalize_activations")
    if isinstance(normalisation, bool):  # SAELens before 6
        normalisation = _RESCALED[0] if normalisation else None
    if normalisation not in (None, "none"):
        _check_normalisation(normalisation, unit_norm)
    row = read_safetensors_row(folder / _WEIGHTS, _DECODER, feature)
    notes = {"format": "saelens", "source": f"SAELens ({architecture})", "hook": hook}
    if normalisation not in (None, "none"):
        notes["normalisation"] = f"{normalisation}: only the row's direction is used"
    return _feature(row, feature, place, notes, model, unit_norm)


def _of_gemma_scope(file: Path, feature: int, layer: int | None, unit_norm: bool) -> Feature:
    path = file.absolute().as_posix()
    kinds = _SCOPE_KIND.findall(path)
    if kinds and kinds[-1] != "res":
        raise InvalidVector(
            f"{file}: expected an autoencoder of the residual stream (gemma-scope-…-res), got {kinds[-1]!r}: Gemma "
            "Scope's others read single attention heads, read behind a norm that is no site, or are transcoders",
            "site",
        )
    found = _SCOPE_LAYER.findall(path)
    if layer is None and not found:
        raise InvalidVector(f"{file}: the path does not name the layer, as in layer_12/: give layer", "layer")
    named = f"blocks.{found[-1]}.hook_resid_post" if found else None
    row = read_npz_row(file, _DECODER, feature)
    notes = {"format": "gemma_scope", "source": "Gemma Scope", "hook": named}
    return _feature(row, feature, _place_of(named, None, layer), notes, None, unit_norm)


def _read_config(file: Path) -> dict[str, Any]:
    with file.open("rb") as opened:
        data = opened.read(MAX_JSON_BYTES + 1)
    if len(data) > MAX_JSON_BYTES:
        raise InvalidVector(f"{file} is larger than {MAX_JSON_BYTES >> 20} MiB")
    return read_object(data, str(file))


def _place_of(hook: object, model: str | None, layer: int | None) -> _Place:
    """Where a row belongs that was trained at `hook` of `model`; `layer`, if given, is the block whatever it says."""
    if not hook:
        if layer is None:
            raise InvalidVector(f"{_CONFIG} names no hook: give layer, the block to steer", "layer")
        return _Place("residual", layer, "the block that was given, as the file names none")
    site, shift, block = place_of(str(hook), model=model)
    if layer is not None and (block is None or layer != block + shift):
        return _Place(site, layer, f"the block that was given; its hook is {hook}")
    if block is None:
        raise InvalidVector(f"its hook is {hook}, which names no block: give layer, the block to steer", "layer")
    if block + shift < 0:
        raise InvalidVector(
            f"its hook is {hook}, the input of block 0, and there is no block before it: give layer to steer another",
            "layer",
        )
    counted = "" if shift == 0 else f", the output of block {block + shift}"
    return _Place(site, block + shift, f"{hook}{counted}")


def _check_normalisation(normalisation: object, unit_norm: bool) -> None:
    if normalisation not in _RESCALED:
        raise InvalidVector(
            f"normalize_activations is {normalisation!r:.60}: its rows are not directions of the model's activations; "
            f"expected none, or with unit_norm one of {', '.join(_RESCALED)}",
            "normalize_activations",
        )
    if not unit_norm:
        raise InvalidVector(
            f"normalize_activations is {normalisation!r}: the length of its rows is not that of the model's "
            "activations; unit_norm takes only the row's direction, with length 1",
            "normalize_activations",
        )


def _feature(
    row: Row, feature: int, place: _Place, notes: Mapping[str, Any], model: object, unit_norm: bool
) -> Feature:
    numbers = _numbers_of(row)
    length = math.sqrt(math.fsum(number * number for number in numbers))
    if not math.isfinite(length) or length == 0.0:
        raise InvalidVector(f"feature {feature} has a row of length {length:g}: it has no direction", "feature")
    dtype, data = row.dtype, row.data
    noted = {**notes, "feature": f"{feature} of {row.num_rows}", "convention": place.convention}
    if unit_norm:
        noted["length"] = f"{length:.6g}, scaled to 1"
        numbers, length = [number / length for number in numbers], 1.0
    elif dtype == "F64":
        noted["converted"] = "float64 to float32"
    if unit_norm or dtype == "F64":
        dtype, data = "F32", struct.pack(f"<{len(numbers)}f", *numbers)
    defaults: dict[str, Any] = {"metadata": {"import": noted}}
    if isinstance(model, str) and model:
        defaults["model"] = model
    content = _canonical_file(f"{place.site}.{place.layer}", dtype, row.num_columns, data, defaults)
    return Feature(place.site, place.layer, length, noted, content)


def _numbers_of(row: Row) -> list[float]:
    """The row's numbers. bfloat16 is the upper half of a float32."""
    if row.dtype == "BF16":
        halves = struct.unpack(f"<{row.num_columns}H", row.data)
        return list(
            struct.unpack(f"<{row.num_columns}f", struct.pack(f"<{row.num_columns}I", *(h << 16 for h in halves)))
        )
    code = {"F64": "d", "F32": "f", "F16": "e"}[row.dtype]
    return list(struct.unpack(f"<{row.num_columns}{code}", row.data))


def _canonical_file(name: str, dtype: str, width: int, data: bytes, defaults: Mapping[str, Any]) -> bytes:
    """A safetensors file with one tensor, which need not be loaded as one."""
    metadata = {DEFAULTS_KEY: json.dumps(defaults, sort_keys=True)}
    entry = {"dtype": dtype, "shape": [width], "data_offsets": [0, len(data)]}
    header = json.dumps({METADATA: metadata, name: entry}).encode()
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header + data
