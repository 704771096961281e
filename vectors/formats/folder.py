"""The folders that libraries write, sent as a zip of their files.

repsteer: `manifest.json` and `tensors.safetensors`. pyvene and pyreft: `config.json` and `intkey_….bin`, a file an
intervention. Others: one file with a tensor beside JSON that describes it (persona-vectors, rotalabs), or a file a
layer (domainsteer, sets of rotalabs). Each file is read as it would be alone; here is only what the folder adds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from torch import Tensor

from vectors.errors import InvalidVector
from vectors.formats.archive import read_archive
from vectors.formats.codec import Codec
from vectors.formats.facts import Facts
from vectors.formats.interpretation import Content, check_size, interpret, layer_in_name
from vectors.formats.json_object import MAX_JSON_BYTES, read_object, shown_value
from vectors.formats.npy import read_npy
from vectors.formats.options import ImportOptions
from vectors.formats.safetensors import is_canonical, read_metadata, read_tensors
from vectors.formats.zips import (
    CHECKSUMS,
    MANIFEST,
    TENSOR_SUFFIXES,
    ZipMembers,
    check_sha256,
    file_suffix,
    zip_kind,
)
from vectors.vector import SteeringVector

_REPSTEER_TENSORS = "tensors.safetensors"
_REPSTEER_TENSOR = {"direction": "direction", "sae_feature": "decoder_direction"}
_DESCRIPTIONS = ("metadata.json", "meta.json")
_PYVENE_FILE = re.compile(
    r"intkey_layer_(?P<layer>[0-9]{1,4})_comp_(?P<component>[a-z_]{1,40})_unit_(?P<unit>[a-z_]{1,20})_nunit_[0-9]{1,6}"
    r"#(?P<count>[0-9]{1,4})\.bin"
)
_PYVENE_PLACES = {
    "block_output": "residual.{}", "block_input": "blocks.{}.hook_resid_pre", "mlp_output": "mlp.{}",
    "attention_output": "attention.{}",
}  # fmt: skip
_PYVENE_SIGNS = {"AdditionIntervention": 1.0, "SubtractionIntervention": -1.0}
_PYVENE_SOURCE, _PYVENE_WIDTH = "source_representation", "interchange_dim"


def decode_folder(
    data: bytes, options: ImportOptions, num_layers: int | None, hidden_size: int | None
) -> SteeringVector:
    """Read a folder; the model's numbers are as for `decode`. Raises `InvalidVector`."""
    files = _Files(ZipMembers(data))
    if any(name.startswith("intkey_") for name in files.tensors):
        content = _pyvene(files)
    elif MANIFEST in files.descriptions and _REPSTEER_TENSORS in files.tensors:
        content = _repsteer(files)
    elif len(files.tensors) == 1 and layer_in_name(PurePosixPath(files.tensors[0]).stem) is None:
        content = _one_file(files)
    else:
        content = _a_file_a_layer(files)
    return interpret(content, options, num_layers, hidden_size)


class _Files:
    """The files of a folder: `tensors` and `descriptions` are the names of those with tensors, and of those in JSON."""

    def __init__(self, members: ZipMembers) -> None:
        self._members = members
        shown = [name for name in members.names if not any(p.startswith((".", "__MACOSX")) for p in name.split("/"))]
        roots = {name.partition("/")[0] for name in shown}
        root = f"{roots.pop()}/" if len(roots) == 1 and all("/" in name for name in shown) else ""
        self._paths = {name.removeprefix(root): name for name in shown}
        self.tensors = [name for name in self._paths if file_suffix(name) in TENSOR_SUFFIXES]
        self.descriptions = [name for name in self._paths if file_suffix(name) == ".json"]
        if not self.tensors:
            listed = ", ".join(list(self._paths)[:6]) or "none"
            raise InvalidVector(
                f"expected an archive of torch.save (with data.pkl), .npz, .brainpatch, or a folder with files of "
                f"{', '.join(TENSOR_SUFFIXES)}; its members are {listed[:200]}"
            )
        nested = next((name for name in self.tensors if "/" in name), None)
        if nested is not None:
            raise InvalidVector(f"expected the files of one folder, got {nested[:80]!r} in a folder of its own")

    def bytes_of(self, name: str) -> bytes:
        return self._members.read(self._paths[name])

    def object_of(self, name: str) -> dict[str, Any]:
        if self._members.size(self._paths[name]) > MAX_JSON_BYTES:
            raise InvalidVector(f"{name[:80]} is larger than {MAX_JSON_BYTES >> 20} MiB")
        return read_object(self.bytes_of(name), name[:80])

    def content_of(self, name: str) -> tuple[Any, dict[str, Any]]:
        """What one file holds, and the facts in its own header. Nothing in it may be compressed a second time."""
        data = self.bytes_of(name)
        try:
            if file_suffix(name) == ".safetensors":
                if is_canonical(data):
                    raise InvalidVector("this is a file of tiller's own: send it alone")
                return read_tensors(data), read_metadata(data)
            if file_suffix(name) == ".npy":
                return read_npy(data), {}
            if zip_kind(data) != "torch":
                raise InvalidVector("expected an archive of torch.save of PyTorch 1.6 or later")
            return read_archive(data, len(data)), {}
        except InvalidVector as error:
            raise InvalidVector(f"{name[:80]}: {error}", error.param) from None

    def tensor_of(self, name: str) -> Tensor:
        """The one tensor of a file."""
        value, _ = self.content_of(name)
        if isinstance(value, Mapping) and len(value) == 1:
            value = next(iter(value.values()))
        if not isinstance(value, Tensor):
            raise InvalidVector(f"{name[:80]}: expected one tensor, got a {type(value).__name__}", name[:80])
        return value

    def beside(self, name: str) -> str | None:
        """The name of the JSON file that has the stem of `name`."""
        other = str(PurePosixPath(name).with_suffix(".json"))
        return other if other in self.descriptions else None


def _one_file(files: _Files) -> Content:
    """One file with tensors; JSON beside it says what it is."""
    (name,) = files.tensors
    described = files.beside(name) or next((other for other in _DESCRIPTIONS if other in files.descriptions), None)
    if described is None and files.descriptions:
        raise InvalidVector(
            f"expected the description of {name[:60]} in {PurePosixPath(name).stem[:60]}.json or "
            f"{' or '.join(_DESCRIPTIONS)}, got {', '.join(files.descriptions[:6])[:200]}"
        )
    value, facts = files.content_of(name)
    return Content("folder", value, facts | (files.object_of(described) if described else {}))


def _a_file_a_layer(files: _Files) -> Content:
    """A file a layer, named by it or described by JSON of the same stem."""
    tensors: dict[str, Tensor] = {}
    description = next((other for other in _DESCRIPTIONS if other in files.descriptions), None)
    facts = files.object_of(description) if description else {}
    for name in files.tensors:
        stem = PurePosixPath(name).stem
        described = files.beside(name)
        own = {} if described is None else files.object_of(described)
        if own and Facts(facts).defaults() not in ({}, Facts(own).defaults()):
            raise InvalidVector(f"{described}: has another strength, operation or model than the folder's other files")
        facts |= own
        said, named = Facts(own).layer(), layer_in_name(stem)
        if named is None and said is None:
            raise InvalidVector(
                f"the folder has {len(files.tensors)} files with tensors, and neither the name of {name[:60]!r} nor "
                "JSON beside it gives its layer; send the one file that you want",
                name[:80],
            )
        if named is not None and said is not None and named != said:
            raise InvalidVector(f"{described}: says layer {said}, but the file is named {name[:60]!r}", "layer")
        tensors[stem if named is not None else f"layer_{said}"] = files.tensor_of(name)
    if len(tensors) != len(files.tensors):
        raise InvalidVector("two files are for the same layer", "layer")
    only_arrays = all(file_suffix(name) == ".npy" for name in files.tensors)
    return Content("folder", tensors, facts, uses_one_layer=only_arrays)


def _repsteer(files: _Files) -> Content:
    """repsteer's artifact: a direction, or one feature of a sparse autoencoder, at a site of one layer."""
    if len(files.tensors) > 1:
        raise InvalidVector(f"expected {_REPSTEER_TENSORS} alone, got {', '.join(files.tensors[:6])[:200]}")
    if CHECKSUMS in files.descriptions:
        recorded = files.object_of(CHECKSUMS).get("files")
        for name in (MANIFEST, _REPSTEER_TENSORS):
            check_sha256(name, files.bytes_of(name), recorded if isinstance(recorded, dict) else {})
    manifest = files.object_of(MANIFEST)
    kind = manifest.get("artifact_type")
    if not isinstance(kind, str) or kind not in _REPSTEER_TENSOR:
        raise InvalidVector(
            f"{MANIFEST}: artifact_type: expected one of {', '.join(_REPSTEER_TENSOR)}, got {shown_value(kind)}; "
            "others are not directions to add"
        )
    tensors, _ = files.content_of(_REPSTEER_TENSORS)
    if _REPSTEER_TENSOR[kind] not in tensors:
        raise InvalidVector(f"{_REPSTEER_TENSORS}: expected the tensor {_REPSTEER_TENSOR[kind]}")
    facts: dict[str, Any] = {}
    site = manifest.get("site")
    if isinstance(site, dict):
        for name, expected in (("stream", "language"), ("io", "output"), ("unit", None), ("tensor_path", [])):
            if site.get(name, expected) != expected:
                raise InvalidVector(
                    f"{MANIFEST}: site.{name}: expected {expected!r}, got {shown_value(site[name])}", "site"
                )
        facts |= {"layer": site.get("layer"), "hook_site": site.get("component")}
    model = manifest.get("model")
    if isinstance(model, dict):
        facts["model"] = model.get("id")
    return Content("folder", {_REPSTEER_TENSOR[kind]: tensors[_REPSTEER_TENSOR[kind]]}, facts)


def _pyvene(files: _Files) -> Content:
    """pyvene's interventions with constant sources: each file's name says the block and the module."""
    if "config.json" not in files.descriptions:
        raise InvalidVector("expected pyvene's config.json beside the interventions: it says what they do")
    sign = _pyvene_sign(files.object_of("config.json"))
    tensors: dict[str, Tensor] = {}
    for name in files.tensors:
        match = _PYVENE_FILE.fullmatch(name)
        if match is None or match["component"] not in _PYVENE_PLACES or match["unit"] != "pos" or match["count"] != "0":
            raise InvalidVector(
                f"expected interventions named intkey_layer_…_comp_…_unit_pos_nunit_…#0.bin with one of "
                f"{', '.join(_PYVENE_PLACES)}, got {name[:120]!r}",
                name[:80],
            )
        state, _ = files.content_of(name)
        source = state.get(_PYVENE_SOURCE) if isinstance(state, Mapping) else None
        if not isinstance(source, Tensor) or not source.dim():
            held = ", ".join(map(str, list(state)[:6])) if isinstance(state, Mapping) else type(state).__name__
            raise InvalidVector(f"{name[:80]}: expected {_PYVENE_SOURCE}, got {held[:120]}; weights are not directions")
        width = state.get(_PYVENE_WIDTH)
        if isinstance(width, Tensor) and (width.dim() or width.item() != source.shape[-1]):
            raise InvalidVector(f"{name[:80]}: expected an intervention on the whole width, got a part of it")
        check_size(source)
        tensors[_PYVENE_PLACES[match["component"]].format(int(match["layer"]))] = source * sign
    return Content("folder", tensors, {})


def _pyvene_sign(config: Mapping[str, Any]) -> float:
    """1 for interventions that add, -1 for those that subtract."""
    types = config.get("intervention_types")
    named = {str(entry).rpartition(".")[2].rstrip("'>") for entry in types} if isinstance(types, list) else set()
    if len(named) != 1 or not named <= _PYVENE_SIGNS.keys():
        raise InvalidVector(
            f"config.json: intervention_types: expected one of {', '.join(_PYVENE_SIGNS)} for all, "
            f"got {', '.join(sorted(named))[:200] or 'none'}",
            "operation",
        )
    return _PYVENE_SIGNS[named.pop()]


def _container(data: bytes) -> str:
    return "zip of a folder" if zip_kind(data) == "folder" else "zip"


CODEC = Codec(lambda data: zip_kind(data) in ("folder", "unknown"), decode_folder, _container)
