"""What named tensors mean, whatever container they came in: which layer each belongs to, and at which site.

In this order: names with layers (`layer_3`, `model.layers.3`, `blocks.3.hook_resid_pre`, …); one tensor, whose layer is
given with the upload or stands beside it; a stack of one row a block; alternatives for one layer, of which `row` picks
one. Anything else is refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vectors.errors import InvalidVector
from vectors.formats.facts import Facts
from vectors.formats.hooks import place_of
from vectors.formats.making import make_vector, shown
from vectors.formats.options import ImportOptions
from vectors.vector import SteeringVector
from vectors.vocabulary import SITES, Site

_LAYER = re.compile(r"(?:layers?[_.]?|model\.layers\.|direction\.)?([0-9]{1,4})")
_SITE = re.compile(rf"({'|'.join(SITES)})\.([0-9]{{1,4}})")
_HOOK = re.compile(r"blocks\.([0-9]{1,4})\.hook_[a-z_]{1,40}")
_NAMED = re.compile(r"(.{1,80}?)_layer_?([0-9]{1,4})")
_LIBRARY_SITES: Mapping[str, Site] = {
    "decoder_block": "residual",
    "self_attn": "attention",
    "mlp": "mlp",
    "post_attention_layernorm": "post_attention_norm",
}
_GIVEN = "keys are 0-based blocks: key L is the output of block L"


@dataclass(frozen=True, slots=True)
class Content:
    """What a container holds. `format` is its short name.

    `value` is a tensor, or tensors by name among other facts, and `facts` is what the container says beside it.
    `uses_one_layer`: the library that writes it applies one of its layers at a time.
    """

    format: str
    value: Any
    facts: Mapping[str, Any]
    uses_one_layer: bool = False


@dataclass(frozen=True, slots=True)
class _Named:
    """One tensor whose name says its layer. `group` is the part of the name that is no layer."""

    tensor: Tensor
    site: Site
    layer: int
    group: str


def interpret(
    content: Content, options: ImportOptions, num_layers: int | None, hidden_size: int | None
) -> SteeringVector:
    """A vector from what a container holds; the model's numbers are as for `decode`. Raises `InvalidVector`."""
    options.choose_convention()
    notes: dict[str, Any] = {"format": content.format}
    value = content.value
    if isinstance(value, list | tuple) and len(value) == 1 and isinstance(value[0], Tensor):
        value = value[0]
    if isinstance(value, Tensor):
        return _from_tensor(value, content, options, num_layers, hidden_size, notes)
    if not isinstance(value, Mapping):
        raise InvalidVector(f"expected a tensor or tensors by name, got a {type(value).__name__}")
    if "layer_activations" in value:
        return _from_library(value, options, hidden_size, notes)
    inner = next((value[name] for name in ("directions", "vectors") if isinstance(value.get(name), Mapping)), None)
    if inner is not None:
        beside = {name: entry for name, entry in value.items() if not isinstance(entry, Mapping | Tensor)}
        return _from_mapping(inner, content, beside, options, num_layers, hidden_size, notes)
    return _from_mapping(value, content, {}, options, num_layers, hidden_size, notes)


def _from_library(
    content: Mapping[str, Any], options: ImportOptions, hidden_size: int | None, notes: dict[str, Any]
) -> SteeringVector:
    """The steering-vectors library: one direction a layer at one type of module, all positions."""
    options.refuse_row("the file has one direction a layer")
    layer_type = content.get("layer_type", "decoder_block")
    site = _LIBRARY_SITES.get(layer_type) if isinstance(layer_type, str) else None
    if site is None:
        given = repr(layer_type[:60]) if isinstance(layer_type, str) else f"a {type(layer_type).__name__}"
        raise InvalidVector(f"layer_type: expected one of {', '.join(_LIBRARY_SITES)}, got {given}", "layer_type")
    activations = content["layer_activations"]
    if not isinstance(activations, Mapping) or not activations:
        raise InvalidVector("the file has no directions")
    notes |= {"convention": _GIVEN, "positions": "all, as the library steers"}
    named = _named_tensors(activations, hidden_size, None)
    directions = {one.layer: one.tensor for one in named}
    return make_vector(directions, options, notes, {"site": site, "positions": "all"})


def _from_mapping(
    content: Mapping[Any, Any],
    container: Content,
    beside: Mapping[str, Any],
    options: ImportOptions,
    num_layers: int | None,
    hidden_size: int | None,
    notes: dict[str, Any],
) -> SteeringVector:
    if not content:
        raise InvalidVector("the file has no directions")
    tensors = {name: entry for name, entry in content.items() if isinstance(entry, Tensor) and entry.dim()}
    rest = {name: _number_or_same(entry) for name, entry in content.items() if name not in tensors}
    if all(_name_of(name) is not None for name in content):
        facts = Facts({**container.facts, **beside})
        named = _named_tensors(content, hidden_size, facts.model)
        return _from_names(named, facts, options, container.uses_one_layer, notes)
    strange = next((n for n, v in rest.items() if isinstance(v, Mapping | list | tuple) and not _is_text(v)), None)
    if strange is not None:
        kind = type(rest[strange]).__name__
        raise InvalidVector(f"the entry {str(strange)[:60]!r} is not a tensor but a {kind}")
    facts = Facts({**container.facts, **beside, **rest})
    chosen = _only_tensor(tensors, facts)
    notes["tensor"] = str(chosen)[:80]
    merged = Content(container.format, tensors[chosen], {**container.facts, **beside, **rest})
    return _from_tensor(tensors[chosen], merged, options, num_layers, hidden_size, notes)


def _is_text(entry: Mapping[Any, Any] | list[Any] | tuple[Any, ...]) -> bool:
    """True for a list of texts, which describes the file, and for what is empty."""
    return not entry or (not isinstance(entry, Mapping) and all(isinstance(one, str) for one in entry))


def _number_or_same(entry: object) -> object:
    """A tensor without dimensions as the number that it is."""
    return entry.item() if isinstance(entry, Tensor) else entry


def _only_tensor(tensors: Mapping[Any, Tensor], facts: Facts) -> Any:
    """The name of the one direction; of several methods' directions, that of the file's default method."""
    if len(tensors) == 1:
        return next(iter(tensors))
    method = facts.text("default_method")
    if method is not None and f"direction.{method}" in tensors:
        return f"direction.{method}"
    if not tensors:
        raise InvalidVector("the file has no tensors")
    names = ", ".join(f"{str(name)[:60]} {list(tensor.shape)[:8]}" for name, tensor in list(tensors.items())[:6])
    unknown = next(str(name) for name in tensors if _name_of(name) is None)
    raise InvalidVector(
        f"expected one tensor, or names with layers as keys such as layer_3 or "
        f"residual.3, got {names}; weights of probes, classifiers and adapters are not directions to add",
        unknown[:80],
    )


def _name_of(name: object, model: str | None = None) -> tuple[Site, int, str] | None:
    """The site, the layer and the rest of a tensor's name in a file for `model`; None for a name without a layer."""
    if isinstance(name, bool) or not isinstance(name, str | int):
        return None
    text = str(name)
    if match := _LAYER.fullmatch(text):
        return "residual", int(match[1]), ""
    if match := _SITE.fullmatch(text):
        site = next(site for site in SITES if site == match[1])
        return site, int(match[2]), ""
    if _HOOK.fullmatch(text):
        site, shift, layer = place_of(text, model=model)
        assert layer is not None
        if layer + shift < 0:
            raise InvalidVector(f"{text}: there is no block before block 0", text)
        return site, layer + shift, ""
    if match := _NAMED.fullmatch(text):
        return "residual", int(match[2]), match[1]
    return None


def layer_in_name(name: str) -> int | None:
    """The layer that a tensor's name says, None for a name without one. Raises `InvalidVector`."""
    place = _name_of(name)
    return None if place is None else place[1]


def _named_tensors(content: Mapping[Any, Any], hidden_size: int | None, model: str | None) -> list[_Named]:
    found: list[_Named] = []
    for key, tensor in content.items():
        place = _name_of(key, model)
        if place is None:
            raise InvalidVector(f"expected layers as keys, got {str(key)[:60]!r}")
        if not isinstance(tensor, Tensor):
            raise InvalidVector(f"the entry {str(key)[:60]!r} is not a tensor")
        check_size(tensor, hidden_size)
        width = tensor.shape[-1] if hidden_size is None and tensor.dim() else hidden_size
        if not 1 <= tensor.dim() <= 3 or tensor.shape[-1] != width or tensor.numel() != width:
            raise InvalidVector(
                f"the entry {str(key)[:60]!r} has shape {list(tensor.shape)[:8]}, but the hidden size is {width}"
            )
        site, layer, group = place
        if any(one.layer == layer and one.group == group and one.site == site for one in found):
            raise InvalidVector(f"layer {layer} appears twice")
        found.append(_Named(tensor.reshape(-1), site, layer, group))
    return found


def _from_names(
    named: list[_Named], facts: Facts, options: ImportOptions, uses_one_layer: bool, notes: dict[str, Any]
) -> SteeringVector:
    options.refuse_row("the names of the file's tensors give their layers")
    groups, sites = sorted({one.group for one in named}), sorted({one.site for one in named})
    if len(groups) > 1:
        raise InvalidVector(
            f"the file has several directions a layer: {', '.join(groups)[:200]}; save the one you want in a file"
        )
    if len(sites) > 1:
        raise InvalidVector(f"expected directions at one site, got {', '.join(sites)}", "site")
    own = facts.defaults()
    shift = 0
    site = sites[0]
    if facts.names_place:
        if site != "residual":
            raise InvalidVector("the file says its site twice: in its names and beside them", "site")
        site, shift, _ = facts.place()
    directions = {one.layer + shift: one.tensor for one in named}
    if -1 in directions:
        raise InvalidVector("the file steers the input of block 0, and there is no block before it", "layer")
    notes["convention"] = _GIVEN if shift == 0 else "key L is the input of block L: the output of block L-1"
    if groups[0]:
        notes["name"] = groups[0]
    return make_vector(directions, options, notes, {"site": site} | own, uses_one_layer=uses_one_layer)


def _from_tensor(
    tensor: Tensor,
    content: Content,
    options: ImportOptions,
    num_layers: int | None,
    hidden_size: int | None,
    notes: dict[str, Any],
) -> SteeringVector:
    shape = list(tensor.shape)
    if not shape or sum(size != 1 for size in shape[:-1]) > 1:
        raise InvalidVector(f"expected a tensor of shape [hidden] or [layers, hidden], got {shape[:8]}")
    check_size(tensor, hidden_size)
    if hidden_size is not None and shape[-1] != hidden_size:
        raise InvalidVector(f"the tensor has shape {shape[:8]}, but the model's hidden size is {hidden_size}")
    rows = tensor.reshape(-1, shape[-1])
    num_rows = rows.shape[0]
    facts = Facts(content.facts)
    if num_rows == 1 and (len(shape) == 1 or num_layers != 1 or options.row is not None):
        options.refuse_row("the file has one direction") if options.row not in (None, 0) else None
        return _one_direction(rows[0], facts, options, notes)
    if options.row is not None:
        if not 0 <= options.row < num_rows:
            raise InvalidVector(f"row: the file has rows 0 to {num_rows - 1}, got {options.row}", "row")
        notes["row"] = f"{options.row} of {num_rows} alternatives for one layer"
        return _one_direction(rows[options.row], facts, options, notes)
    return _stack(rows, content, options, num_layers, notes)


def _one_direction(direction: Tensor, facts: Facts, options: ImportOptions, notes: dict[str, Any]) -> SteeringVector:
    if options.asked is not None and len(options.asked) != 1:
        raise InvalidVector("the file has one direction: give its layer", "layers")
    said = facts.layer()
    site, shift, named = facts.place(said)
    own = facts.defaults() | ({"site": site} if facts.names_place else {})
    said = named if said is None else said
    if options.asked is not None:
        (layer,) = options.asked
        notes["convention"] = "one direction, at the layer that the upload gave"
        if said is not None and said + shift != layer:
            notes["layer_in_file"] = said
    elif said is None:
        raise InvalidVector(
            'the file has one direction and does not say its layer; upload it with metadata {"layer": 12}', "layer"
        )
    else:
        layer = said + shift
        if layer < 0:
            raise InvalidVector(f"the file's layer is {said}, and there is no block {layer}", "layer")
        counted = "" if shift == 0 else f", whose input is the output of block {layer}"
        notes["convention"] = f"one direction, at the layer that the file says: {said}{counted}"
    return make_vector({layer: direction}, ImportOptions(overrides=options.overrides), notes, own)


def _stack(
    rows: Tensor, content: Content, options: ImportOptions, num_layers: int | None, notes: dict[str, Any]
) -> SteeringVector:
    num_rows = rows.shape[0]
    if num_layers is None:
        raise InvalidVector(
            f"the file has {num_rows} rows, and the first may be the embeddings: "
            "pass the model's number of blocks as num_layers",
            "num_layers",
        )
    if num_rows == num_layers:
        notes["convention"] = "one row a block: row L is the output of block L"
    elif num_rows == num_layers + 1:
        notes["convention"] = "row 0 is the embeddings and is left out: row L + 1 is the output of block L"
        rows = rows[1:]
    else:
        raise InvalidVector(
            f"the tensor has {num_rows} rows, but the model has {num_layers} blocks; if the rows "
            "are alternatives for one layer, give row and layer",
            "row",
        )
    zero = [layer for layer in range(num_layers) if not bool((rows[layer] != 0).any())]
    if len(zero) == num_layers:
        raise InvalidVector("every row is all zeros")
    if zero:
        notes["layers_without_direction"] = zero
    directions = {layer: rows[layer] for layer in range(num_layers) if layer not in zero}
    facts = Facts(content.facts)
    said = facts.layer()
    if options.asked is None and said is not None:
        if said not in directions:
            raise InvalidVector(f"the file says layer {said}; its layers are {shown(list(directions))}", "layer")
        notes["selected"] = f"layer {said} of {num_layers}, as the file says"
        directions = {said: directions[said]}
    own = facts.defaults()
    return make_vector(directions, options, notes, own, behind_norm=num_layers - 1, uses_one_layer=True)


def check_size(tensor: Tensor, hidden_size: int | None = None) -> None:
    """Raise `InvalidVector` for a tensor that repeats its numbers, unless the hidden size bounds it."""
    if hidden_size is None and tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise InvalidVector(f"a tensor of shape {list(tensor.shape)[:8]} is larger than the file's data")
