"""Multimodal checkpoints are served as text, without the parts that text does not use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from server.engine.model import load_model
from server.engine.request import EngineRequest, Generate
from tests.server.engine.driving import GREEDY, engine_of, prompt_of, run, tokens_of

_TEXT = {
    "vocab_size": 101,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
}
_VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 4,
    "head_dim": 8,
}


def _mistral3() -> Any:
    config = transformers.Mistral3Config(
        text_config=_TEXT | {"model_type": "ministral3", "pad_token_id": 0},
        vision_config=_VISION | {"model_type": "pixtral"},
        image_token_index=99,
    )
    return transformers.Mistral3ForConditionalGeneration(config)


def _qwen2_vl() -> Any:
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
    config = transformers.Qwen2VLConfig(
        text_config=_TEXT | {"rope_parameters": rope, "initializer_range": 0.3},
        vision_config={"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "patch_size": 4},
        image_token_id=99,
        video_token_id=98,
        vision_start_token_id=97,
        vision_end_token_id=96,
    )
    return transformers.Qwen2VLForConditionalGeneration(config)


def _gemma3() -> Any:
    config = transformers.Gemma3Config(
        text_config=_TEXT | {"sliding_window": 7, "query_pre_attn_scalar": 8, "pad_token_id": 0},
        vision_config=_VISION,
        mm_tokens_per_image=4,
        image_token_index=99,
        boi_token_index=98,
        eoi_token_index=97,
    )
    return transformers.Gemma3ForConditionalGeneration(config)


def _emu3() -> Any:
    """Its causal class does not read this checkpoint; its multimodal one does."""
    config = transformers.Emu3Config(
        text_config=_TEXT | {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
        vq_config={
            "base_channels": 32, "channel_multiplier": [1], "num_res_blocks": 1, "attn_resolutions": [],
            "codebook_size": 8, "embed_dim": 4, "latent_channels": 4, "z_channels": 4, "hidden_size": 32,
            "num_attention_heads": 1,
        },
        vocabulary_map={"<image>": 99},
    )  # fmt: skip
    return transformers.Emu3ForConditionalGeneration(config)


def _qwen2_audio() -> Any:
    """Its forward pass reads the device of the tower before it looks whether there is any audio."""
    config = transformers.Qwen2AudioConfig(
        text_config=_TEXT | {"model_type": "qwen2", "pad_token_id": 0},
        audio_config={
            "num_mel_bins": 8, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 32,
            "d_model": 32, "max_source_positions": 16,
        },
        audio_token_index=99,
    )  # fmt: skip
    return transformers.Qwen2AudioForConditionalGeneration(config)


def _got_ocr2() -> Any:
    """Its tower takes no custom attention function, its text model does."""
    config = transformers.GotOcr2Config(
        text_config=_TEXT | {"model_type": "qwen2"},
        vision_config={
            "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "mlp_dim": 48, "image_size": 16,
            "patch_size": 4, "output_channels": 16, "window_size": 2, "global_attn_indexes": [1],
        },
        image_token_index=99,
    )  # fmt: skip
    return transformers.GotOcr2ForConditionalGeneration(config)


FAMILIES: dict[str, tuple[Any, str]] = {
    "got_ocr2": (_got_ocr2, "vision_tower"),
    "mistral3": (_mistral3, "vision_tower"),
    "qwen2_vl": (_qwen2_vl, "visual"),
    "gemma3": (_gemma3, "vision_tower"),
    "emu3": (_emu3, "vqmodel"),
    "qwen2_audio": (_qwen2_audio, "audio_tower"),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_multimodal_checkpoint_is_exact_on_text_and_keeps_no_tower(family: str, tmp_path: Path) -> None:
    make, tower = FAMILIES[family]
    torch.manual_seed(0)
    model = make().eval()
    model.generation_config.eos_token_id = None
    model.save_pretrained(tmp_path)
    loaded = load_model(tmp_path, device="cpu", dtype="float32", kernels="torch")
    names = {name for name, _ in model.named_parameters()}
    kept = {name for name, _ in loaded.module.named_parameters()}
    assert not any(tower in name or "projector" in name for name in kept)
    assert kept == {name for name in names if "language_model" in name or "text_model" in name or "lm_head" in name}
    assert loaded.info.num_parameters == sum(parameter.numel() for parameter in loaded.module.parameters())
    prompts = [prompt_of(length, vocabulary=90) for length in (1, 9, 23)]
    engine = engine_of(loaded, max_batch_tokens=8)
    outputs = run(engine, [EngineRequest(str(p), prompt, Generate(8, GREEDY)) for p, prompt in enumerate(prompts)])
    engine.close()
    for prompt, events in zip(prompts, outputs.values(), strict=True):
        ids = torch.tensor([prompt])
        whole = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)
        assert tokens_of(events) == whole[0, len(prompt) :].tolist()
