"""`.brainpatch` of the brainpatch library: a zip of a manifest, its vectors and their checksums.

Each intervention adds `coefficient` times a vector to the output of a block, at the tokens of its `site`. A patch
becomes one vector: coefficients are multiplied in, interventions at one layer are added up, and the patch's
`default_strength` is the default scale. A schedule over tokens, and interventions at different sites, are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vectors.errors import InvalidVector
from vectors.formats.codec import Codec
from vectors.formats.json_object import read_object, shown_value
from vectors.formats.making import make_vector
from vectors.formats.options import ImportOptions
from vectors.formats.safetensors import read_tensors
from vectors.formats.zips import CHECKSUMS, MANIFEST, VECTORS, ZipMembers, check_sha256, zip_kind
from vectors.vector import SteeringVector
from vectors.vocabulary import MAX_LAYER, NamedPositions

_VERSION = "1.0"
_HOOK = "residual_post"
_POSITIONS: Mapping[str, NamedPositions] = {"all": "all", "prompt": "prompt", "continuation": "response"}
_MAX_INTERVENTIONS = 10_000
_MAX_VALUES = 16 << 20
_MAX_STRENGTH = 1024  # the library's own limit


def decode_brainpatch(
    data: bytes, options: ImportOptions, num_layers: int | None, hidden_size: int | None
) -> SteeringVector:
    """Read a patch, whose vectors must be of `hidden_size` if it is known. Raises `InvalidVector`."""
    options.choose_convention()
    options.refuse_row("the manifest gives the layers")
    members = ZipMembers(data)
    content = {name: members.read(name) for name in members.names}
    _check(content)
    manifest = read_object(content[MANIFEST], MANIFEST)
    if manifest.get("format_version", _VERSION) != _VERSION:
        raise InvalidVector(f"format_version: expected {_VERSION}, got {shown_value(manifest['format_version'])}")
    if manifest.get("schedule") is not None:
        raise InvalidVector("the patch's strength follows a schedule over tokens, which cannot be done", "schedule")
    interventions = manifest.get("interventions")
    if not isinstance(interventions, list) or not 0 < len(interventions) <= _MAX_INTERVENTIONS:
        raise InvalidVector(f"{MANIFEST}: expected interventions, a list of 1 to {_MAX_INTERVENTIONS}")
    tensors = read_tensors(content[VECTORS])
    site = _site_of(interventions)
    notes: dict[str, Any] = {
        "format": "brainpatch",
        "convention": "layer L of an intervention is the output of block L",
        "interventions": len(interventions),
    }
    if "positions" not in options.overrides:
        notes["positions"] = f"{_POSITIONS[site]}, for the patch's site {site}"
        if site == "continuation":
            notes["positions"] += "; response begins at the last token of the prompt, one before the patch's"
    own: dict[str, Any] = {"positions": _POSITIONS[site]}
    if "default_strength" in manifest:
        own["default_scale"] = _number(manifest["default_strength"], "default_strength")
    if isinstance(manifest.get("description"), str):
        own["description"] = manifest["description"]
    model = manifest.get("base_model")
    if isinstance(model, dict) and isinstance(model.get("model_id"), str):
        own["model"] = model["model_id"]
    return make_vector(_summed(interventions, tensors, hidden_size), options, notes, own)


def _check(content: Mapping[str, bytes]) -> None:
    """Compare each member with the SHA-256 that the archive gives for it."""
    if CHECKSUMS not in content:
        raise InvalidVector(f"the archive has no {CHECKSUMS}")
    checksums = read_object(content[CHECKSUMS], CHECKSUMS)
    for name, member in content.items():
        if name != CHECKSUMS:
            check_sha256(name, member, checksums)


def _site_of(interventions: list[Any]) -> str:
    """The site of all interventions, after a check of what each asks for."""
    sites = set()
    for number, entry in enumerate(interventions):
        name = f"interventions[{number}]"
        if not isinstance(entry, dict):
            raise InvalidVector(f"{name}: expected an object")
        hook, site = entry.get("hook", _HOOK), entry.get("site", "all")
        if hook != _HOOK:
            raise InvalidVector(f"{name}.hook: expected {_HOOK}, got {shown_value(hook)}", "site")
        if not isinstance(site, str) or site not in _POSITIONS:
            raise InvalidVector(
                f"{name}.site: expected one of {', '.join(_POSITIONS)}, got {shown_value(site)}", "positions"
            )
        sites.add(site)
    if len(sites) > 1:
        raise InvalidVector(f"expected interventions at one site, got {', '.join(sorted(sites))}", "positions")
    return sites.pop()


def _summed(interventions: list[Any], tensors: Mapping[str, Tensor], hidden_size: int | None) -> dict[int, Tensor]:
    """The directions by layer, in float32 where a coefficient or a sum changes them."""
    directions: dict[int, Tensor] = {}
    num_values = 0
    for number, entry in enumerate(interventions):
        name = f"interventions[{number}]"
        layer, key = entry.get("layer"), entry.get("vector")
        if type(layer) is not int or not 0 <= layer <= MAX_LAYER:
            raise InvalidVector(f"{name}.layer: expected 0 to {MAX_LAYER}, got {shown_value(layer)}", "layer")
        if not isinstance(key, str) or key not in tensors:
            raise InvalidVector(f"{name}.vector: {shown_value(key)} is not in {VECTORS}", "vector")
        coefficient = _number(entry.get("coefficient", 1.0), f"{name}.coefficient")
        direction = tensors[key]
        if direction.dim() != 1 or (hidden_size is not None and direction.shape[0] != hidden_size):
            expected, shape = "hidden" if hidden_size is None else hidden_size, list(direction.shape)[:8]
            raise InvalidVector(f"vector {key[:60]!r}: expected shape [{expected}], got {shape}", key[:80])
        num_values += direction.numel()
        if num_values > _MAX_VALUES:  # otherwise a small file could repeat one vector at every layer
            raise InvalidVector(f"{name}: the patch's directions have more than {_MAX_VALUES} numbers")
        if coefficient != 1.0 or layer in directions:
            direction = direction.to(torch.float32) * coefficient
        if layer in directions:
            if direction.shape != directions[layer].shape:
                raise InvalidVector(f"{name}.vector: the vectors of layer {layer} have different sizes", "vector")
            direction = directions[layer].to(torch.float32) + direction
        directions[layer] = direction
    return directions


def _number(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= _MAX_STRENGTH:
        raise InvalidVector(f"{name}: expected a number up to {_MAX_STRENGTH}, got {shown_value(value)}", name)
    return float(value)


CODEC = Codec(lambda data: zip_kind(data) == "brainpatch", decode_brainpatch, lambda data: "brainpatch")
