"""Blocks in one call of the kernels: which models have them, and that no bit depends on where a call ends."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel

from server.engine.model import LoadedModel, prepare_model
from server.engine.request import Branch, Capture, EngineRequest, Generate
from server.kernels.library import Kernels
from server.steering.plan import UNSTEERED, SteeringPlan
from tests.families import CONFIGS, LAYERS, VOCABULARY, build
from tests.reference import Steer, activations, steered_logits
from tests.server.engine.driving import GREEDY, engine_of, plan_of, prompt_of, random_direction, run, tokens_of
from vectors.vocabulary import SITES

FUSED = {"llama", "mistral", "qwen2", "qwen3", "phi3"}
PLACES = [(site, layer) for site in SITES for layer in range(LAYERS)]
ADDS = tuple(Steer(random_direction(n, 1.0), layer, site, positions="all") for n, (site, layer) in enumerate(PLACES))
CHANGES = tuple(
    Steer(steer.direction, steer.layer, steer.site, positions="all", operation="ablate", preserve_norm=True)
    for steer in ADDS
)


def at_the_end(steer: Steer) -> Steer:
    """The same for the last token of a prompt, as a branch may have it."""
    return replace(steer, positions="response")


def fused(kernels: Kernels, family: str = "llama") -> LoadedModel:
    model = prepare_model(build(family), kernels=kernels)
    assert model.is_fused
    return model


def odd_llama() -> PreTrainedModel:
    """No width is a multiple of what the kernels take at once, and every linear layer has a bias."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=21, intermediate_size=19, num_hidden_layers=LAYERS, num_attention_heads=3,
        num_key_value_heads=1, head_dim=6, attention_bias=True, mlp_bias=True, initializer_range=0.25,
        max_position_embeddings=256, eos_token_id=None, bos_token_id=None,
    )  # fmt: skip
    model: PreTrainedModel = transformers.LlamaForCausalLM(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.5)
    return model


@pytest.mark.parametrize("family", CONFIGS)
def test_the_families_whose_blocks_are_like_a_llamas_have_them_fused(kernels: Kernels, family: str) -> None:
    model = prepare_model(build(family), kernels=kernels)
    assert model.is_fused == (family in FUSED)
    assert (model.short_forward is not None) == (family in FUSED)


def test_a_model_that_scales_its_logits_is_run_by_its_own_code_around_the_blocks(kernels: Kernels) -> None:
    torch.manual_seed(0)
    module = transformers.GraniteForCausalLM(transformers.GraniteConfig(**small(), logits_scaling=3.0)).eval()
    tokens = prompt_of(12)
    with torch.inference_mode():
        wanted = module(torch.tensor([tokens])).logits[0, -1]
    model = prepare_model(module, kernels=kernels)
    assert model.is_fused
    assert model.short_forward is None
    engine = engine_of(model)
    events = run(engine, [EngineRequest("own", tokens, Generate(1, GREEDY, num_logprobs=VOCABULARY))])["own"]
    engine.close()
    assert events[0].logprobs is not None
    order, values = zip(*events[0].logprobs.top, strict=True)
    torch.testing.assert_close(torch.tensor(values), wanted.log_softmax(-1)[list(order)], atol=1e-4, rtol=0)


@pytest.mark.parametrize("steers", [ADDS, (*ADDS, *CHANGES), CHANGES], ids=["adds", "both", "changes"])
def test_steering_at_every_place_is_that_of_plain_hooks(kernels: Kernels, steers: tuple[Steer, ...]) -> None:
    plain, prompt = build("llama"), prompt_of(19)
    engine = engine_of(fused(kernels), max_batch_tokens=7)
    work = Generate(5, GREEDY, num_logprobs=VOCABULARY)
    events = run(engine, [EngineRequest("own", prompt, work, plan_of(*steers))])["own"]
    engine.close()
    wanted = torch.log_softmax(steered_logits(plain, (*prompt, *tokens_of(events)), steers, len(prompt)), -1)
    for index, event in enumerate(events):
        assert event.logprobs is not None
        order, values = zip(*event.logprobs.top, strict=True)
        torch.testing.assert_close(
            torch.tensor(values), wanted[len(prompt) - 1 + index][list(order)], atol=1e-4, rtol=0
        )


def test_captures_at_every_place_are_the_activations_of_the_plain_model(kernels: Kernels) -> None:
    plain, prompt = build("llama"), prompt_of(11)
    engine = engine_of(fused(kernels))
    work = Capture(tuple(range(LAYERS)), SITES, tuple(range(11)))
    found = run(engine, [EngineRequest("own", prompt, work)])["own"][0].activations
    engine.close()
    assert found is not None
    assert set(found) == set(PLACES)
    for (site, layer), rows in found.items():
        torch.testing.assert_close(rows, activations(plain, prompt, site, layer), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("make", [lambda: build("llama"), odd_llama], ids=["even", "odd"])
def test_where_a_call_ends_changes_no_bit(kernels: Kernels, make: Callable[[], PreTrainedModel]) -> None:
    """Neighbours that are captured, ablated or branch end the calls of every step that they are in."""
    model = prepare_model(make(), kernels=kernels)
    assert model.is_fused
    hidden = model.info.hidden_size
    short = [replace(steer, direction=steer.direction[:hidden]) for steer in (*ADDS, *CHANGES)]
    own = {
        "plain": UNSTEERED,
        "added": plan_of(*short[: len(ADDS)]),
        "changed": plan_of(*short),
    }
    others = [
        EngineRequest("capture", prompt_of(30), Capture(tuple(range(LAYERS)), SITES, tuple(range(30)))),
        EngineRequest("ablated", prompt_of(9), Generate(20, GREEDY), plan_of(*short[len(ADDS) :])),
        EngineRequest("branch", prompt_of(17), Branch(tuple(plan_of(at_the_end(steer)) for steer in short), (1, 2))),
    ]

    def logprobs(name: str, plan: SteeringPlan, neighbours: list[EngineRequest]) -> list[list[float]]:
        engine = engine_of(model, prefix_cache=False)
        request = EngineRequest(name, prompt_of(25, seed=3), Generate(8, GREEDY, num_logprobs=VOCABULARY), plan)
        events = run(engine, [*neighbours[:2], request, *neighbours[2:]])[name]
        engine.close()
        return [[value for _, value in event.logprobs.top] for event in events if event.logprobs is not None]

    for name, plan in own.items():
        alone = logprobs(name, plan, [])
        assert len(alone) == 8
        assert logprobs(name, plan, others) == alone, name


def test_tokens_that_enter_late_have_the_bits_of_those_that_compute_every_block(kernels: Kernels) -> None:
    model = fused(kernels)
    assert model.allows_late_entry
    steers = [tuple(map(at_the_end, each)) for each in (*((steer,) for steer in (*ADDS, *CHANGES)), ADDS, CHANGES)]
    prompt, tokens = prompt_of(17), (3, 50, 7)
    request = EngineRequest("branch", prompt, Branch(tuple(plan_of(*each) for each in steers), tokens))

    def logits(model: LoadedModel) -> Tensor:
        engine = engine_of(model)
        capture = EngineRequest("capture", prompt_of(8), Capture(tuple(range(LAYERS)), SITES, (2, 5)))
        found = run(engine, [request, capture])["branch"][0].branch_logits
        engine.close()
        assert found is not None
        return found

    late = logits(model)
    assert torch.equal(late, logits(replace(model, allows_late_entry=False)))
    plain = build("llama")
    wanted = torch.stack([steered_logits(plain, prompt, each)[-1][list(tokens)] for each in steers])
    torch.testing.assert_close(late, wanted, atol=1e-4, rtol=1e-4)


def small() -> dict[str, Any]:
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    config = build("llama").config
    return {name: getattr(config, name) for name in names} | {"max_position_embeddings": 256, "initializer_range": 0.25}


def with_another_activation() -> PreTrainedModel:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**small(), hidden_act="gelu"))


def with_scaled_residuals() -> PreTrainedModel:
    """No module shows that the block multiplies what it adds to the stream."""
    return transformers.GraniteForCausalLM(transformers.GraniteConfig(**small(), residual_multiplier=0.5))


@pytest.mark.parametrize("make", [with_another_activation, with_scaled_residuals])
def test_blocks_that_look_alike_and_compute_something_else_stay_their_own(
    kernels: Kernels, make: Callable[[], PreTrainedModel], caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    caplog.set_level(logging.INFO, "server.engine.fusion_probe")
    module = make().eval()
    tokens = prompt_of(12)
    with torch.inference_mode():
        wanted = torch.log_softmax(module(torch.tensor([tokens])).logits[0, -1], -1)
    model = prepare_model(module, kernels=kernels)
    assert not model.is_fused
    assert "the blocks are computed one layer after the other" in caplog.text
    engine = engine_of(model)
    events = run(engine, [EngineRequest("own", tokens, Generate(1, GREEDY, num_logprobs=VOCABULARY))])["own"]
    engine.close()
    assert events[0].logprobs is not None
    order, values = zip(*events[0].logprobs.top, strict=True)
    torch.testing.assert_close(torch.tensor(values), wanted[list(order)], atol=1e-4, rtol=0)
