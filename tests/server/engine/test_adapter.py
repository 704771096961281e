"""An adapter lands whole or is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from server.engine.adapter import merge_adapter
from server.engine.refusal import ModelRefused
from tests.families import build

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

Tensors = dict[str, Tensor]


def adapted(folder: Path, **changes: Any) -> Any:
    """A LoRA of the tiny llama with random weights, saved in `folder`; returns the adapted model."""
    settings = {"r": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", "init_lora_weights": False}
    torch.manual_seed(1)
    model = peft.get_peft_model(build("llama"), peft.LoraConfig(**(settings | changes)))
    model.save_pretrained(folder)
    return model


def test_an_adapter_is_merged(tmp_path: Path) -> None:
    merged = adapted(tmp_path).merge_and_unload()
    tokens = torch.arange(9)[None]
    assert torch.equal(merge_adapter(build("llama"), str(tmp_path))(tokens).logits, merged(tokens).logits)


def renamed(old: str, new: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name.replace(old, new): tensor for name, tensor in tensors.items()}


DAMAGED: dict[str, tuple[Callable[[Tensors], Tensors], str]] = {
    "another prefix": (renamed("model.model.", "model.transformer."), "12 of its 12 weights belong to no module"),
    "other layers": (renamed("layers.2.", "layers.7."), r"4 of its 12 weights belong to no module .*layers\.7\."),
    "half a pair": (
        lambda tensors: {
            name: tensor for name, tensor in tensors.items() if "layers.1.self_attn.q_proj.lora_B" not in name
        },
        r"lacks 1 weights .*layers\.1\.self_attn\.q_proj\.lora_B",
    ),
    "another rank": (lambda tensors: {name: tensor[:3].clone() for name, tensor in tensors.items()}, "size mismatch"),
    "nothing": (lambda tensors: {}, "has no weights"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_an_adapter_of_which_anything_does_not_land_is_refused(damage: str, tmp_path: Path) -> None:
    adapted(tmp_path)
    change, message = DAMAGED[damage]
    path = tmp_path / "adapter_model.safetensors"
    save_file(change(load_file(path)), path)
    with pytest.raises(ModelRefused, match=message):
        merge_adapter(build("llama"), str(tmp_path))


def test_an_adapter_of_another_kind_is_refused(tmp_path: Path) -> None:
    model = peft.get_peft_model(build("llama"), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    model.save_pretrained(tmp_path)
    with pytest.raises(ModelRefused, match="cannot be merged"):
        merge_adapter(build("llama"), str(tmp_path))


def test_a_folder_without_an_adapter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelRefused, match="cannot load the adapter"):
        merge_adapter(build("llama"), str(tmp_path))
