"""A feature of a sparse autoencoder is the row of its decoder, at the place where the autoencoder reads."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save
from torch import Tensor

import vectors
import vectors.formats
from tests.families import HIDDEN, build
from tests.vectors.formats.test_libraries import hooked, log_probabilities
from vectors.errors import InvalidVector
from vectors.formats.autoencoder import Feature, read_feature
from vectors.plain.steering import steer

FEATURES = 6
DECODER = torch.randn(FEATURES, HIDDEN, generator=torch.Generator().manual_seed(3)) / HIDDEN**0.5
HOOK = "blocks.1.hook_resid_post"
CODES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64"}


def safetensors(tensors: dict[str, Tensor], cut: int = 0) -> bytes:
    """The file, byte by byte, less `cut` bytes of its end."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    body = b""
    for name, tensor in tensors.items():
        raw = bytes(tensor.contiguous().view(torch.uint8).numpy().tobytes())
        offsets = [len(body), len(body) + len(raw)]
        header[name] = {"dtype": CODES.get(tensor.dtype, "I64"), "shape": list(tensor.shape), "data_offsets": offsets}
        body += raw
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body[: len(body) - cut]


def saelens(folder: Path, decoder: Tensor = DECODER, cut: int = 0, **config: Any) -> Path:
    """A folder as SAELens 6 saves it. `config` joins cfg.json, and its `metadata` the metadata there."""
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {"sae_lens_version": "6.54.0", "hook_name": HOOK, "hook_head_index": None} | config.pop("metadata", {})
    base = {
        "d_in": HIDDEN, "d_sae": FEATURES, "dtype": "float32", "apply_b_dec_to_input": True, "architecture": "standard",
        "normalize_activations": "none", "reshape_activations": "none", "metadata": metadata,
    }  # fmt: skip
    (folder / "cfg.json").write_text(json.dumps(base | config), encoding="utf-8")
    tensors = {"W_enc": torch.randn(HIDDEN, FEATURES), "W_dec": decoder, "b_dec": torch.randn(HIDDEN)}
    (folder / "sae_weights.safetensors").write_bytes(safetensors(tensors, cut))
    return folder


def npy(array: np.ndarray[Any, Any]) -> bytes:
    """NumPy's own bytes of an array."""
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def scope(folder: Path, *, place: str = "layer_1/width_16k", deflated: bool = False, fortran: bool = False) -> Path:
    """`params.npz` as Gemma Scope publishes it."""
    file = folder / place / "params.npz"
    file.parent.mkdir(parents=True)
    decoder: Any = DECODER.numpy()
    save = np.savez_compressed if deflated else np.savez
    save(file, W_enc=np.zeros((HIDDEN, FEATURES)), W_dec=np.asfortranarray(decoder) if fortran else decoder)
    return file


def direction_of(feature: Feature, path: Path) -> Tensor:
    file = path / "feature.safetensors"
    file.write_bytes(feature.content)
    return vectors.load(file).directions[feature.layer]


# where it was trained, the module that is steered there, its block, whether its input
PLACES = {
    "blocks.1.hook_resid_post": ("", 1, False),
    "blocks.1.hook_resid_pre": ("", 1, True),
    "blocks.1.hook_mlp_out": ("mlp", 1, False),
    "blocks.1.hook_attn_out": ("self_attn", 1, False),
    "model.layers.1": ("", 1, False),
    "model.layers.1.mlp": ("mlp", 1, False),
}


@pytest.mark.parametrize("hook", PLACES)
def test_a_feature_steers_as_a_hook_with_its_row(tmp_path: Path, hook: str) -> None:
    model = build("llama")
    module, block, at_input = PLACES[hook]
    vector = vectors.load(saelens(tmp_path, metadata={"hook_name": hook}), model, feature=4, positions="all")
    before = log_probabilities(model)
    with hooked(model.model.layers[block].get_submodule(module), lambda hidden: hidden + DECODER[4], at_input):
        theirs = log_probabilities(model)
    with steer(model, vector):
        assert (log_probabilities(model) - theirs).abs().max() < 1e-5
    assert (theirs - before).abs().max() > 1e-3


@pytest.mark.parametrize("dtype", CODES)
@pytest.mark.parametrize("feature", [0, FEATURES - 1])
def test_the_row_is_kept_to_the_bit(tmp_path: Path, dtype: torch.dtype, feature: int) -> None:
    found = read_feature(saelens(tmp_path, DECODER.to(dtype)), feature)
    expected = DECODER[feature].to(dtype)
    expected = expected.float() if dtype == torch.float64 else expected
    direction = direction_of(found, tmp_path)
    assert direction.dtype == expected.dtype
    assert torch.equal(direction, expected)
    assert found.length == pytest.approx(float(expected.double().norm()), rel=1e-6)
    assert ("converted" in found.notes) == (dtype == torch.float64)


@pytest.mark.parametrize("deflated", [False, True])
@pytest.mark.parametrize("fortran", [False, True])
def test_gemma_scope_by_its_path(tmp_path: Path, deflated: bool, fortran: bool) -> None:
    file = scope(tmp_path, deflated=deflated, fortran=fortran)
    for path in (file, file.parent):
        found = read_feature(path, 5)
        assert (found.site, found.layer) == ("residual", 1)
        assert torch.equal(direction_of(found, tmp_path), DECODER[5])
    assert found.summary.startswith(
        f"Gemma Scope, feature 5 of {FEATURES}: residual at layer 1 (blocks.1.hook_resid_post)"
    )


def test_gemma_scope_without_a_layer_in_its_path(tmp_path: Path) -> None:
    file = scope(tmp_path, place="mine")
    with pytest.raises(InvalidVector, match=r"does not name the layer, as in layer_12/: give layer") as caught:
        read_feature(file, 0)
    assert caught.value.param == "layer"
    assert read_feature(file, 0, layer=7).layer == 7


@pytest.mark.parametrize("kind", ["mlp", "att", "transcoders"])
def test_gemma_scope_of_other_places_is_refused(tmp_path: Path, kind: str) -> None:
    file = scope(tmp_path, place=f"models--google--gemma-scope-2b-pt-{kind}/layer_1")
    with pytest.raises(InvalidVector, match=f"expected an autoencoder of the residual stream .*got '{kind}'"):
        read_feature(file, 0)


def test_only_the_row_is_read(tmp_path: Path) -> None:
    """A file of which nothing but its header and the row exists on the disk is read in no time and little memory."""
    rows, width = 1 << 20, 1 << 10  # 4 GiB
    text = json.dumps(
        {"W_dec": {"dtype": "F32", "shape": [rows, width], "data_offsets": [0, rows * width * 4]}}
    ).encode()
    folder = saelens(tmp_path)
    with (folder / "sae_weights.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.seek(8 + len(text) + (rows - 2) * width * 4)
        file.write(np.full(width, 2.0, "<f4").tobytes())
        file.truncate(8 + len(text) + rows * width * 4)
    assert read_feature(folder, rows - 2).length == pytest.approx(2 * width**0.5)


def test_a_row_of_length_one_if_asked(tmp_path: Path) -> None:
    for normalisation in ("expected_average_only_in", "layer_norm", "constant_norm_rescale", True):
        folder = saelens(tmp_path, normalize_activations=normalisation)
        with pytest.raises(InvalidVector, match=r"normalize_activations is .*unit_norm takes only the row's direction"):
            read_feature(folder, 2)
        found = read_feature(folder, 2, unit_norm=True)
        assert "only the row's direction" in found.notes["normalisation"]
        assert found.length == 1.0
        assert torch.allclose(direction_of(found, tmp_path), DECODER[2] / DECODER[2].norm(), atol=1e-7)
    with pytest.raises(InvalidVector, match="'covariance_whitening': its rows are not directions of the model's"):
        read_feature(saelens(tmp_path, normalize_activations="covariance_whitening"), 2, unit_norm=True)


def test_what_was_understood_is_noted(tmp_path: Path) -> None:
    folder = saelens(tmp_path, metadata={"hook_name": "blocks.3.hook_resid_pre", "model_name": "tiny/llama"})
    found = read_feature(folder, 1)
    assert found.summary == (
        f"SAELens (standard), feature 1 of {FEATURES}: residual at layer 2 (blocks.3.hook_resid_pre, the output of "
        f"block 2), length {DECODER[1].norm():.4g}"
    )
    vector = vectors.load(folder, feature=1, default_scale=4.0)
    assert (vector.layers, vector.model, vector.default_scale) == ((2,), "tiny/llama", 4.0)
    assert vector.metadata["import"]["hook"] == "blocks.3.hook_resid_pre"
    assert vector.metadata["import"]["feature"] == f"1 of {FEATURES}"


def test_another_layer_may_be_given(tmp_path: Path) -> None:
    found = read_feature(saelens(tmp_path), 1, layer=3)
    assert found.layer == 3
    assert found.notes["convention"] == f"the block that was given; its hook is {HOOK}"
    first = saelens(tmp_path, metadata={"hook_name": "blocks.0.hook_resid_pre"})
    with pytest.raises(InvalidVector, match="no block before it"):
        read_feature(first, 1)
    assert read_feature(first, 1, layer=0).layer == 0
    nowhere = saelens(tmp_path, metadata={"hook_name": None})
    with pytest.raises(InvalidVector, match=r"cfg.json names no hook: give layer"):
        read_feature(nowhere, 1)


def test_the_config_of_sae_lens_before_6(tmp_path: Path) -> None:
    folder = saelens(tmp_path)
    (folder / "cfg.json").write_text(json.dumps({"hook_point": "blocks.2.hook_resid_pre", "d_in": HIDDEN}))
    assert read_feature(folder, 1).layer == 1


@pytest.mark.parametrize(
    ("model", "site"),
    [
        ("gemma-2-2b", "post_attention_norm"),
        ("google/gemma-3-1b-it", "post_attention_norm"),
        ("google/gemma-3n-E2B", "post_attention_norm"),
        ("google/gemma-4-E2B-it", "post_attention_norm"),
        ("allenai/OLMo-2-0425-1B", "post_attention_norm"),
        ("allenai/Olmo-3-1025-7B", "post_attention_norm"),
        ("allenai/FlexOlmo-7x7B-1T", "post_attention_norm"),
        ("LGAI-EXAONE/EXAONE-4.0-1.2B", "post_attention_norm"),
        ("zai-org/GLM-4-32B-Base-0414", None),
        ("zai-org/GLM-4.5-Air", "attention"),
        ("gemma-2b", "attention"),
        ("allenai/OLMo-1B-hf", "attention"),
        ("meta-llama/Llama-3.2-1B", "attention"),
    ],
)
def test_a_norm_behind_attention_and_mlp(tmp_path: Path, model: str, site: str | None) -> None:
    """A hook's name is the same place in an autoencoder and in any other file."""

    def places(hook: str) -> list[tuple[str, int]]:
        found = read_feature(saelens(tmp_path, metadata={"model_name": model, "hook_name": hook}), 0)
        facts = {"model_id": model}
        named = vectors.formats.decode(save({hook: DECODER[0].clone()}, facts))
        beside = vectors.formats.decode(save({"v": DECODER[0].clone()}, facts | {"hook_name": hook}))
        return [(found.site, found.layer), *((one.site, one.layers[0]) for one in (named, beside))]

    for hook, expected in (("attn", site), ("mlp", "mlp" if site == "attention" else None)):
        if expected is None:
            with pytest.raises(InvalidVector, match="behind the norm that follows the module; no site is there"):
                places(f"blocks.1.hook_{hook}_out")
        else:
            assert places(f"blocks.1.hook_{hook}_out") == [(expected, 1)] * 3
    assert places("blocks.1.hook_resid_post") == [("residual", 1)] * 3


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"architecture": "transcoder"}, "the architecture is 'transcoder'.*expected one of standard, gated"),
        ({"architecture": "jumprelu_skip_transcoder"}, "'jumprelu_skip_transcoder'"),
        ({"reshape_activations": "hook_z"}, "reads single attention heads"),
        ({"metadata": {"hook_head_index": 3}}, "reads single attention heads"),
        ({"metadata": {"hook_name": "blocks.1.attn.hook_z"}}, "hook: expected one of .*, got 'blocks.1.attn.hook_z'"),
        ({"metadata": {"hook_name": "blocks.1.hook_resid_mid"}}, "got 'blocks.1.hook_resid_mid'"),
        ({"metadata": {"hook_name": 3}}, "got '3'"),
        ({"cut": HIDDEN * 4 + 4}, "ends before row 5; is it truncated"),
        ({"decoder": DECODER.to(torch.int64)}, r"expected one of F64, F32, F16, BF16 as dtype, got I64"),
        ({"decoder": DECODER[0]}, r"expected shape \[features, hidden\], got \[\d+\]"),
        ({"decoder": torch.zeros(FEATURES, HIDDEN)}, "feature 5 has a row of length 0: it has no direction"),
        ({"decoder": DECODER / 0}, "feature 5 has a row of length"),
    ],
)  # fmt: skip
def test_what_is_refused_and_why(tmp_path: Path, config: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidVector, match=says):
        read_feature(saelens(tmp_path, **config), FEATURES - 1)


@pytest.mark.parametrize("feature", [-1, FEATURES])
def test_a_feature_that_is_not_there(tmp_path: Path, feature: int) -> None:
    for path in (saelens(tmp_path / "a"), scope(tmp_path / "b")):
        with pytest.raises(InvalidVector, match=f"feature: expected 0 to {FEATURES - 1}, got {feature}") as caught:
            read_feature(path, feature)
        assert caught.value.param == "feature"


def test_damaged_and_other_files(tmp_path: Path) -> None:
    other = tmp_path / "params.npz"
    objects = npy(np.array([[{}]], dtype=object))
    for content, says in [
        (b"", "cannot be read as an .npz file"),
        (b"PK\x03\x04" + bytes(40), "cannot be read as an .npz file"),
        (_zip({"W_enc.npy": npy(DECODER.numpy())}), "expected a matrix named W_dec, got W_enc"),
        (_zip({"W_dec.npy": b"no array"}), "params.npz: expected NumPy's format 1 to 3 of an array"),
        (_zip({"W_dec.npy": objects}), "as dtype, got |O"),
        (
            _zip({"W_dec.npy": b"\x93NUMPY\x01\x00" + struct.pack("<H", 9) + b"((((((((("}),
            "expected the header of an array of numbers, got '\\(\\(\\(",
        ),
    ]:
        other.write_bytes(content)
        with pytest.raises(InvalidVector, match=says):
            read_feature(other, 0, layer=1)
    deflated = bytearray(scope(tmp_path / "deflated", deflated=True).read_bytes())
    middle = len(deflated) // 2
    deflated[middle : middle + 64] = b"\xff" * 64
    other.write_bytes(deflated)
    with pytest.raises(InvalidVector, match=r"cannot be read as an \.npz file"):
        read_feature(other, FEATURES - 1, layer=1)
    other.unlink()
    with pytest.raises(InvalidVector, match=r"expected a folder of SAELens with cfg\.json"):
        read_feature(tmp_path, 0)
    for config in ("[]", "{", " " * (5 << 20)):
        (saelens(tmp_path) / "cfg.json").write_text(config)
        with pytest.raises(InvalidVector, match=r"expected a JSON object|is not JSON|is larger than 4 MiB"):
            read_feature(tmp_path, 0)
    with pytest.raises(FileNotFoundError):
        read_feature(tmp_path / "none.npz", 0, layer=1)
    with pytest.raises(InvalidVector, match="unit_norm is for a feature of an autoencoder"):
        vectors.load(tmp_path / "v.safetensors", unit_norm=True)


def _zip(members: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()
