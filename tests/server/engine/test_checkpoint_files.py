"""Formats that are not served are named, with what would help."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
import torch

from server.engine.checkpoint_files import check_files
from server.engine.refusal import ModelRefused
from tests.families import build


def folder(path: Path, names: Iterable[str]) -> str:
    for name in names:
        (path / name).touch()
    return str(path)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["model-Q4_K_M.gguf"], r"is a GGUF model.*gguf_file='model-Q4_K_M.gguf'.*vLLM"),
        (["config.json", "model-Q4_K_M.gguf"], "is a GGUF model"),
        (["config.json", "pytorch_model.bin"], r"only in pickled files.*use_safetensors=False"),
        (["config.json"], "has no weights: expected .safetensors"),
        (["adapter_config.json", "adapter_model.safetensors"], "is an adapter: serve its base model with --adapter"),
        (["model.safetensors"], "has no config.json"),
        ([], "has no config.json"),
    ],
)
def test_a_folder_in_another_format_is_refused(names: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelRefused, match=message):
        check_files(folder(tmp_path, names))


def test_a_folder_with_more_than_safetensors_is_fine(tmp_path: Path) -> None:
    check_files(folder(tmp_path, ["config.json", "model.safetensors", "pytorch_model.bin", "model.gguf"]))


def test_a_hub_id_that_cannot_be_looked_at_is_judged_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelRefused, match="someone/Llama-GGUF is a GGUF model"):
        check_files("someone/Llama-GGUF")
    check_files("someone/Llama")


def test_the_way_out_of_pickled_files_works(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = build("llama")
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelRefused, match="pickled"):
        check_files(str(tmp_path))
    AutoModelForCausalLM.from_pretrained(str(tmp_path), use_safetensors=False).save_pretrained(tmp_path / "new")
    check_files(str(tmp_path / "new"))
