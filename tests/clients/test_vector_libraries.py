"""Files that other libraries of steering vectors write steer here as they steer there.

Each library makes its file, and steers a tiny random Llama with its own code; the file read by tiller gives the same
log-probabilities. They have an environment of their own: see `constraints-clients-vectors.txt`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import vectors
from tests.vectors.formats.test_libraries import hooked
from vectors.errors import InvalidVector
from vectors.plain.steering import steer

pytestmark = pytest.mark.filterwarnings("ignore")  # what other libraries use may be deprecated

LAYERS, HIDDEN = 5, 32
IDS = torch.tensor([[3, 9, 27, 20, 60, 52, 28, 23, 8]])
V = torch.randn(LAYERS, HIDDEN, generator=torch.Generator().manual_seed(1))

Made: TypeAlias = tuple[Path, dict[str, Any], Tensor]
"""A file, what an upload of it says, and the log-probabilities that its library steers to."""

Library: TypeAlias = Callable[[Any, Path], Made]


@pytest.fixture
def model() -> Any:
    """Built anew for each test, since some libraries change it."""
    return build()


def build() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=HIDDEN, intermediate_size=48, num_hidden_layers=LAYERS, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def log_probabilities(model: Any) -> Tensor:
    with torch.no_grad():
        return torch.log_softmax(model(input_ids=IDS).logits.double(), -1)


def load(name: str) -> Any:
    """A module of a library, or a skip where the library is not installed."""
    return pytest.importorskip(name, exc_type=ImportError)


def repeng(model: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    import numpy

    monkeypatch.setattr(numpy, "float_", numpy.float64, raising=False)  # it asks for NumPy 1
    library = load("repeng")
    vector = library.ControlVector("llama", {layer: V[layer].numpy() for layer in range(1, LAYERS)})
    vector.export_gguf(folder / "v.gguf")
    control = library.ControlModel(model, [1, 2, 3, 4])
    control.set_control(vector)
    theirs = log_probabilities(control)
    control.unwrap()
    return folder / "v.gguf", {"layers": "1-4"}, theirs


def dialz(model: Any, folder: Path) -> Made:
    library = load("dialz")
    model.half().float()  # it reads weights in float16
    model.save_pretrained(folder / "model")
    vector = library.SteeringVector("llama", {layer: V[layer].numpy() for layer in range(1, LAYERS)})
    vector.export_gguf(folder / "v.gguf")
    control = library.SteeringModel(str(folder / "model"), [1, 2, 3])
    control.model.float()
    control.set_control(vector)
    return folder / "v.gguf", {}, log_probabilities(control)


def steering_vectors(model: Any, folder: Path, layer_type: str) -> Made:
    library = load("steering_vectors")
    vector = library.SteeringVector({1: V[1], 3: V[3]}, layer_type)
    torch.save({"layer_activations": vector.layer_activations, "layer_type": vector.layer_type}, folder / "v.pt")
    with vector.apply(model):
        return folder / "v.pt", {}, log_probabilities(model)


def pyvene(model: Any, folder: Path, component: str, operation: str = "Addition") -> Made:
    library = load("pyvene")
    place = {"layer": 2, "component": component, "source_representation": V[2]}
    kind = getattr(library, f"{operation}Intervention")
    steered = library.IntervenableModel([place | {"intervention_type": kind}], model=model)
    steered.save(str(folder))
    with torch.no_grad():
        _, answer = steered(base={"input_ids": IDS}, unit_locations={"base": list(range(IDS.shape[1]))})
    return folder, {}, torch.log_softmax(answer.logits.double(), -1)


def batched_melbo(model: Any, folder: Path) -> Made:
    made = load("batched_melbo.batched_melbo").BatchedMELBO(
        model, None, source_layer_idx=2, target_layer_idx=3, layers_name="model.layers"
    )
    made.learned_vectors = torch.cat([V, V * 2])
    torch.save(made.learned_vectors, folder / "v.pt")
    with made.steer(7):
        return folder / "v.pt", {"layer": 2, "row": 7}, log_probabilities(model)


def rotalabs(model: Any, folder: Path, has_description: bool) -> Made:
    vector = load("rotalabs_steer.core.vectors").SteeringVector("calm", 2, V[2], "tiny")
    vector.save(folder / "v.pt")
    with load("rotalabs_steer.core.injection").ActivationInjector(model, [vector]):
        theirs = log_probabilities(model)
    return (folder, {}, theirs) if has_description else (folder / "v.pt", {"layer": vector.layer_index}, theirs)


def hidden_directions(model: Any, folder: Path) -> Made:
    bake = load("hidden_directions.bake").bake_advocate
    bake(folder, "tiny", 2, v_pref=V, alpha_pref=1.5, dtype=torch.float32)
    file = folder / "advocate_bias.pt"
    bias = torch.load(file, weights_only=True)["bias"]
    load("hidden_directions.load").patch_down_proj_bias(model, 2, bias)
    theirs = log_probabilities(model)
    model.model.layers[2].mlp.down_proj.bias = None
    return file, {}, theirs


def steerkit(model: Any, folder: Path, site: str, suffix: str) -> Made:
    unit = V[2] / V[2].norm()
    probe = load("steerkit.probe").Probe(
        {"logistic": unit, "mass_mean": V[1] / V[1].norm()}, {}, 2, {}, "tiny", site, f"blocks.2.hook_{site}", LAYERS,
        auto_alpha=3.0,
    )  # fmt: skip
    file = folder / f"v.{suffix}"
    if suffix == "gguf":
        load("steerkit.gguf_export").export_probe_to_gguf(probe, file, scale=3.0)
    else:
        probe.save(file)
    push = load("steerkit.intervention").make_hook("addition", probe.direction, alpha=probe.auto_alpha)
    with hooked(model.model.layers[2], lambda hidden: push(hidden, None), site == "resid_pre"):
        return file, {}, log_probabilities(model)


def saklas(model: Any, folder: Path, suffix: str) -> Made:
    """Without its dose, which multiplies by shares of the layers and is no part of the file."""
    library = load("saklas.core.profile")
    profile = library.Profile({1: V[1], 3: V[3]})
    file = folder / f"v.{suffix}"
    if suffix == "gguf":
        profile.to_gguf(file, model_hint="llama")
    else:
        profile.save(file)
    again = library.Profile.load(file)
    with (
        hooked(model.model.layers[1], lambda hidden: hidden + again.weight_at(1), False),
        hooked(model.model.layers[3], lambda hidden: hidden + again.weight_at(3), False),
    ):
        return file, {}, log_probabilities(model)


def brainpatch(model: Any, folder: Path, site: str) -> Made:
    load("brainpatch")
    form = importlib.import_module("brainpatch.patch.format")
    place = form.Intervention(layer=2, vector="v", coefficient=2.0, site=site)
    base = form.BaseModelSpec("tiny", "LlamaForCausalLM", HIDDEN, LAYERS)
    compiler = importlib.import_module("brainpatch.patch.compiler")
    vector = {"v": V[2].tolist()}
    file = compiler.compile_from_vectors("tiny", vector, [place], base, folder / "v.brainpatch", dtype="F32")
    backend = importlib.import_module("brainpatch.backends.transformers_backend").TransformersBackend()
    backend.model, backend.model_id, backend.device = model, "tiny", torch.device("cpu")
    backend.install_patch(importlib.import_module("brainpatch.patch.loader").load_patch(file))
    backend._install_hooks()
    try:
        return Path(file), {}, log_probabilities(model)
    finally:
        backend._remove_hooks()


def brainpatch_gguf(model: Any, folder: Path) -> Made:
    file, _, theirs = brainpatch(model, folder, "all")
    exported = importlib.import_module("brainpatch.patch.compiler").export_llamacpp_control_vector(
        file, folder / "v.gguf"
    )
    return exported, {"convention": "one_based"}, theirs


def repsteer(model: Any, folder: Path, site: str) -> Made:
    library = load("repsteer")
    place = getattr(library.sites, site)(layer=2)
    metadata = library.ArtifactMetadata(model_id="tiny", site=place, hidden_size=HIDDEN, method="mine")
    artifact = library.DirectionArtifact(metadata, V[2])
    artifact.save(folder / "artifact")
    steered = library.models.from_model(model, None)
    control = library.Intervention(
        artifact=artifact, operator=library.operators.Add(), positions=library.positions.AllTokens(),
        strength=library.schedules.Constant(1.0),
    )  # fmt: skip
    with steered.steer(control, compatibility="dimension"):
        theirs = log_probabilities(steered.forward)
    return folder / "artifact", {}, theirs


def sae_lens(model: Any, folder: Path, hook: str) -> Made:
    library = load("sae_lens")
    metadata = load("sae_lens.saes.sae").SAEMetadata(hook_name=f"blocks.2.{hook}", model_name="tiny")
    made = library.StandardSAE(library.StandardSAEConfig(d_in=HIDDEN, d_sae=LAYERS, metadata=metadata))
    made.W_dec.data.copy_(V)
    made.save_model(folder)
    module = {"hook_mlp_out": "mlp", "hook_attn_out": "self_attn"}.get(hook, "")
    target = model.model.layers[2].get_submodule(module)
    with hooked(target, lambda hidden: hidden + made.W_dec[3].detach(), hook == "hook_resid_pre"):
        return folder, {"feature": 3}, log_probabilities(model)


LIBRARIES: dict[str, Library] = {
    "dialz": dialz,
    "steering-vectors": lambda model, folder: steering_vectors(model, folder, "decoder_block"),
    "steering-vectors, attention": lambda model, folder: steering_vectors(model, folder, "self_attn"),
    "steering-vectors, MLP": lambda model, folder: steering_vectors(model, folder, "mlp"),
    "steering-vectors, norm": lambda model, folder: steering_vectors(model, folder, "post_attention_layernorm"),
    "pyvene": lambda model, folder: pyvene(model, folder, "block_output"),
    "pyvene, input": lambda model, folder: pyvene(model, folder, "block_input"),
    "pyvene, MLP": lambda model, folder: pyvene(model, folder, "mlp_output"),
    "pyvene, attention": lambda model, folder: pyvene(model, folder, "attention_output"),
    "pyvene, subtraction": lambda model, folder: pyvene(model, folder, "block_output", "Subtraction"),
    "batched-melbo": batched_melbo,
    "rotalabs": lambda model, folder: rotalabs(model, folder, True),
    "rotalabs, without its JSON": lambda model, folder: rotalabs(model, folder, False),
    "hidden-directions": hidden_directions,
    "steerkit": lambda model, folder: steerkit(model, folder, "resid_post", "safetensors"),
    "steerkit, input": lambda model, folder: steerkit(model, folder, "resid_pre", "safetensors"),
    "steerkit, GGUF": lambda model, folder: steerkit(model, folder, "resid_post", "gguf"),
    "steerkit, input, GGUF": lambda model, folder: steerkit(model, folder, "resid_pre", "gguf"),
    "saklas": lambda model, folder: saklas(model, folder, "safetensors"),
    "saklas, GGUF": lambda model, folder: saklas(model, folder, "gguf"),
    "brainpatch": lambda model, folder: brainpatch(model, folder, "all"),
    "brainpatch, GGUF": brainpatch_gguf,
    "repsteer": lambda model, folder: repsteer(model, folder, "resid_post"),
    "repsteer, input": lambda model, folder: repsteer(model, folder, "resid_pre"),
    "SAELens": lambda model, folder: sae_lens(model, folder, "hook_resid_post"),
    "SAELens, input": lambda model, folder: sae_lens(model, folder, "hook_resid_pre"),
    "SAELens, MLP": lambda model, folder: sae_lens(model, folder, "hook_mlp_out"),
    "SAELens, attention": lambda model, folder: sae_lens(model, folder, "hook_attn_out"),
}


def check(model: Any, made: Made) -> None:
    """The file steers the model as its library did."""
    file, options, theirs = made
    before = log_probabilities(model)
    vector = vectors.load(file, model, **options)
    with steer(model, vector, positions="all"):
        ours = log_probabilities(model)
    assert (theirs - before).abs().max() > 1e-3
    assert (ours - theirs).abs().max() < 1e-5


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_file_steers_as_its_library_does(model: Any, tmp_path: Path, name: str) -> None:
    check(model, LIBRARIES[name](model, tmp_path))


def test_repeng(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = repeng(model, tmp_path, monkeypatch)
    check(model, made)
    vector = vectors.load(made[0], model)
    assert vector.layers == (1, 2, 3)  # the last was read behind the final norm
    assert vector.positions == "all"


def test_numbering_from_one_cannot_be_seen_in_one_tensor(model: Any, tmp_path: Path) -> None:
    """Only a direction beyond the last block shows that brainpatch counts blocks from 1."""
    exported, _, theirs = brainpatch_gguf(model, tmp_path)
    vector = vectors.load(exported, model)
    assert vector.layers == (3,)
    with steer(model, vector, positions="all"):
        assert (log_probabilities(model) - theirs).abs().max() > 1e-3
    assert vectors.load(exported, model, convention="one_based").layers == (2,)


def test_a_transcoder_is_refused(tmp_path: Path) -> None:
    library = load("sae_lens")
    metadata = load("sae_lens.saes.sae").SAEMetadata(hook_name="blocks.2.ln2.hook_normalized")
    config = library.TranscoderConfig(d_in=HIDDEN, d_sae=4, d_out=HIDDEN, apply_b_dec_to_input=False, metadata=metadata)
    library.Transcoder(config).save_model(tmp_path)
    with pytest.raises(InvalidVector, match="the architecture is 'transcoder'"):
        vectors.load(tmp_path, feature=0)
