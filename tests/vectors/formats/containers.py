"""The containers of other libraries made by hand, so that any part of them can be false."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from tests.vectors.formats.pickles import saved

_CODES = {torch.float32: "f4", torch.float64: "f8", torch.float16: "f2", torch.int64: "i8"}


def npy(values: Tensor, *, order: str = "<", fortran: bool = False, header: str | None = None) -> bytes:
    """A `.npy` file of format 1. `header` replaces the header that is right."""
    code = _CODES[values.dtype]
    flat = (values.T if fortran else values).contiguous().reshape(-1).tolist()
    body = struct.pack(f"{order}{len(flat)}{ {'f4': 'f', 'f8': 'd', 'f2': 'e', 'i8': 'q'}[code] }", *flat)
    shape = f"({', '.join(map(str, values.shape))}{',' if values.dim() == 1 else ''})"
    said = f"{{'descr': '{order}{code}', 'fortran_order': {fortran}, 'shape': {shape}, }}" if header is None else header
    padded = said + " " * (-(len(said) + 11) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(padded)) + padded.encode("latin-1") + body


def zipped(files: Mapping[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """A zip of files by name."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def npz(arrays: Mapping[str, Tensor], compression: int = zipfile.ZIP_STORED) -> bytes:
    """A `.npz` file."""
    return zipped({f"{name}.npy": npy(values) for name, values in arrays.items()}, compression)


def svec(directions: Mapping[int, Tensor], /, **more: Any) -> bytes:
    """A `.svec` file."""
    numbers = {str(layer): direction.tolist() for layer, direction in directions.items()}
    variances = {str(layer): 0.5 for layer in directions}
    content = {"model_type": "llama", "directions": numbers, "explained_variances": variances}
    return json.dumps(content | more).encode()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def brainpatch_files(interventions: list[Any], tensors: Mapping[str, Tensor], **more: Any) -> dict[str, bytes]:
    """The members of a patch, with their checksums."""
    manifest = {
        "format_version": "1.0",
        "name": "calm",
        "base_model": {"model_id": "tiny/llama", "hidden_size": 8, "num_layers": 3},
        "interventions": interventions,
        "schedule": None,
    }
    files = {
        "README.md": b"# calm\n",
        "manifest.json": json.dumps(manifest | more).encode(),
        "vectors.safetensors": safetensors.torch.save(dict(tensors), metadata={"format": "brainpatch-vectors-v1"}),
    }
    return files | {"checksums.json": json.dumps({name: sha256(content) for name, content in files.items()}).encode()}


def brainpatch(interventions: list[Any], tensors: Mapping[str, Tensor], **more: Any) -> bytes:
    """A `.brainpatch` file, deflated as the library writes it."""
    return zipped(brainpatch_files(interventions, tensors, **more), zipfile.ZIP_DEFLATED)


def repsteer(
    direction: Tensor, component: str = "resid_post", name: str = "direction", **more: Any
) -> dict[str, bytes]:
    """The files of a repsteer artifact at layer 1."""
    site = {"stream": "language", "component": component, "layer": 1, "unit": None, "io": "output", "tensor_path": []}
    manifest = {
        "schema_version": "1.0",
        "artifact_type": "direction",
        "method": "diff_mean",
        "model": {"id": "tiny/llama", "revision": None, "hidden_size": direction.shape[-1]},
        "site": site,
        "config": {},
        "tensor_keys": [name],
    }
    files = {
        "manifest.json": json.dumps(manifest | more).encode(),
        "tensors.safetensors": safetensors.torch.save({name: direction}),
    }
    checksums = {"algorithm": "sha256", "files": {file: sha256(content) for file, content in files.items()}}
    return files | {"checksums.json": json.dumps(checksums).encode()}


def pyvene(
    direction: Tensor, component: str = "block_output", kind: str = "pyvene.models.interventions.AdditionIntervention"
) -> dict[str, bytes]:
    """The files of a pyvene model with one constant source at layer 1."""
    width = torch.tensor(direction.shape[-1])
    state = {"embed_dim": width, "interchange_dim": width, "source_representation": direction}
    return {
        "config.json": json.dumps({"intervention_types": [f"<class '{kind}'>"], "mode": "parallel"}).encode(),
        f"intkey_layer_1_comp_{component}_unit_pos_nunit_1#0.bin": saved(state),
    }


def persona_vectors(direction: Tensor) -> dict[str, bytes]:
    """The files of the persona-vectors package."""
    metadata = {"suggested_alpha": 1.5, "persona_id": "calm", "layer": 1, "model_id": "tiny/llama", "n_qa_pairs": 3}
    return {
        "steering_vector.safetensors": safetensors.torch.save({"steering_vector": direction[None, None].contiguous()}),
        "metadata.json": json.dumps(metadata).encode(),
    }


def rotalabs(direction: Tensor, layer: int = 1) -> dict[str, bytes]:
    """The two files of a vector of rotalabs-steer."""
    described = {"behavior": "calm", "layer_index": layer, "model_name": "tiny/llama", "metadata": {"n": 3}}
    return {f"layer_{layer}.pt": saved(direction), f"layer_{layer}.json": json.dumps(described).encode()}


def rotalabs_set(direction: Tensor) -> dict[str, bytes]:
    """A set of rotalabs-steer whose other layer is out of the way of layer 1."""
    described = {"behavior": "calm", "layers": [1], "model_name": "tiny/llama"}
    return rotalabs(direction) | {"metadata.json": json.dumps(described).encode()}


FOLDERS: dict[str, tuple[Callable[[Tensor], dict[str, bytes]], str, int, bool, float]] = {
    "repsteer": (repsteer, "", 1, False, 1.0),
    "repsteer, resid_pre": (lambda v: repsteer(v, "resid_pre"), "", 1, True, 1.0),
    "repsteer, mlp_out": (lambda v: repsteer(v, "mlp_out"), "mlp", 1, False, 1.0),
    "repsteer, a feature": (
        lambda v: repsteer(v, name="decoder_direction", artifact_type="sae_feature"), "", 1, False, 1.0,
    ),
    "repsteer, zipped as a folder": (
        lambda v: {"calm/": b""} | {f"calm/{name}": content for name, content in repsteer(v).items()}
        | {"__MACOSX/calm/._manifest.json": b"\0"}, "", 1, False, 1.0,
    ),
    "pyvene, block_output": (pyvene, "", 1, False, 1.0),
    "pyvene, block_input": (lambda v: pyvene(v, "block_input"), "", 1, True, 1.0),
    "pyvene, mlp_output": (lambda v: pyvene(v, "mlp_output"), "mlp", 1, False, 1.0),
    "pyvene, attention_output": (lambda v: pyvene(v, "attention_output"), "self_attn", 1, False, 1.0),
    "pyvene, subtraction": (
        lambda v: pyvene(v, kind="pyvene.models.interventions.SubtractionIntervention"), "", 1, False, -1.0,
    ),
    "persona-vectors, folder": (persona_vectors, "", 1, False, 1.5),
    "rotalabs": (rotalabs, "", 1, False, 1.0),
    "rotalabs, a set": (rotalabs_set, "", 1, False, 1.0),
    "domainsteer, one layer": (
        lambda v: {"direction_layer_1.npy": npy(v), "meta.json": b'{"model_name": "tiny/llama"}'}, "", 1, False, 1.0,
    ),
}  # fmt: skip
"""Each library's folder, by name: its files around a direction, and where and how strongly the library adds it: the
module in its block, the block, whether at its input, the strength."""
