"""The typical norms are those of a plain forward pass, and a restart with the same model reads them from the disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from server.engine.engine import BatchingEngine, EngineSettings
from server.engine.fingerprint import fingerprint_of
from server.engine.model import prepare_model
from server.steering.norms import TypicalNorms
from server.text import TextProcessor
from server.typical_norms import FOLDER, MAX_TOKENS, TEXTS, measure_norms, typical_norms
from tests.server.api.serving import CHAT_TEMPLATE, LAYERS, byte_tokenizer, tiny_module

LIMITS = EngineSettings(num_pages=60, page_size=8, max_batch_tokens=64)


def plain_norms(module: LlamaForCausalLM, prompts: list[list[int]]) -> dict[tuple[str, int], float]:
    """Mean ‖h‖ by hooks on a plain forward pass, a token at a time, without the first token of each prompt."""
    found: dict[tuple[str, int], list[float]] = {}

    def hook(site: str, layer: int) -> object:
        def see(_: object, __: object, output: torch.Tensor | tuple[torch.Tensor, ...]) -> None:
            rows = output[0] if isinstance(output, tuple) else output
            for row in rows.reshape(-1, rows.shape[-1])[1:]:
                found.setdefault((site, layer), []).append(sum(value**2 for value in row.tolist()) ** 0.5)

        return see

    for layer, block in enumerate(module.model.layers):
        parts = {
            "residual": block, "attention": block.self_attn, "mlp": block.mlp,
            "post_attention_norm": block.post_attention_layernorm,
        }  # fmt: skip
        for site, part in parts.items():
            part.register_forward_hook(hook(site, layer))
    with torch.inference_mode():
        for prompt in prompts:
            module(torch.tensor([prompt]))
    return {place: sum(values) / len(values) for place, values in found.items()}


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, None])
def test_norms_are_those_of_a_plain_forward_pass(template: str | None) -> None:
    tokenizer = byte_tokenizer(template)
    with BatchingEngine(prepare_model(tiny_module()), LIMITS) as engine:
        norms = measure_norms(engine, TextProcessor(tokenizer))
    prompts = []
    for question, answer in TEXTS:
        text = f"{question}\n\n{answer}"
        if template is not None:
            text = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n{answer}"
        prompts.append(tokenizer.encode(text, add_special_tokens=False)[:MAX_TOKENS])
    plain = plain_norms(tiny_module(), prompts)
    assert norms.num_tokens == sum(len(prompt) - 1 for prompt in prompts)
    assert len(plain) == 4 * LAYERS
    assert norms.means == pytest.approx(plain, rel=1e-4)


def test_a_restart_measures_nothing_and_another_model_is_measured(tmp_path: Path) -> None:
    text = TextProcessor(byte_tokenizer())
    with BatchingEngine(prepare_model(tiny_module()), LIMITS) as engine:
        first = typical_norms(engine, text, tmp_path)
    (path,) = (tmp_path / FOLDER).iterdir()
    assert path.stat().st_mode & 0o077 == 0
    with BatchingEngine(prepare_model(tiny_module()), LIMITS) as engine:
        assert typical_norms(engine, text, tmp_path) == first
        assert engine.stats().total_requests == 0
        path.write_text('{"means": {"residual.1": -1}, "num_tokens": 5}')
        assert typical_norms(engine, text, tmp_path) == first
        assert TypicalNorms.from_json(json.loads(path.read_bytes())) == first
    other = tiny_module()
    with torch.no_grad():
        other.model.layers[0].mlp.down_proj.weight.mul_(1.5)
    with BatchingEngine(prepare_model(other), LIMITS) as engine:
        assert typical_norms(engine, text, tmp_path) != first
    assert len(list((tmp_path / FOLDER).iterdir())) == 2


def test_a_fingerprint_tells_weights_apart_but_not_precisions() -> None:
    module = tiny_module()
    own = fingerprint_of(module)
    assert fingerprint_of(tiny_module()) == own
    half = tiny_module()
    torch.nn.Module.to(half, torch.bfloat16)
    assert fingerprint_of(half) == own
    with torch.no_grad():
        module.model.layers[2].self_attn.q_proj.weight.mul_(1.01)
    assert fingerprint_of(module) != own
