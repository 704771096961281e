"""A model that the compiled kernels compute gives what it gives without them, with the checkpoint's own numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from server.engine.attention.compiled import CompiledAttention
from server.engine.model import load_model, prepare_model
from server.engine.packing import NarrowEmbedding, PackedLinear, PackedNorm, narrowed, pack_model
from server.engine.request import EngineRequest, Generate
from server.kernels.library import Kernels
from tests.families import CONFIGS, VOCABULARY, build
from tests.reference import Steer, steered_logits
from tests.server.engine.driving import GREEDY, engine_of, loaded, plan_of, prompt_of, random_direction, run, tokens_of

STEERS = (
    Steer(random_direction(1), 0, positions="all"),
    Steer(random_direction(2), 2, "mlp", 0.7, operation="clamp", preserve_norm=True),
)


@pytest.mark.parametrize("family", CONFIGS)
def test_every_family_is_exact_in_chunks_and_steered(kernels: Kernels, family: str) -> None:
    plain, model = build(family), prepare_model(build(family), kernels=kernels)
    assert model.attention is CompiledAttention
    assert any(isinstance(module, PackedLinear) for module in model.module.modules())
    sites = loaded(family).info.sites
    assert model.info.sites == sites
    engine = engine_of(model, max_batch_tokens=7)
    requests = [
        EngineRequest(
            f"{length} {bool(steers)}",
            prompt_of(length),
            Generate(6, GREEDY, num_logprobs=VOCABULARY),
            plan_of(*steers),
        )
        for length in (1, 20)
        for steers in ((), tuple(steer for steer in STEERS if steer.site in sites))
    ]
    outputs = run(engine, requests)
    for request in requests:
        events = outputs[request.request_id]
        tokens = (*request.prompt, *tokens_of(events))
        steers = tuple(steer for steer in STEERS if request.plan.is_steered and steer.site in sites)
        logprobs = torch.log_softmax(steered_logits(plain, tokens, steers, len(request.prompt)), -1)
        for index, event in enumerate(events):
            assert event.logprobs is not None
            order, values = zip(*event.logprobs.top, strict=True)
            wanted = logprobs[len(request.prompt) - 1 + index][list(order)]
            torch.testing.assert_close(torch.tensor(values), wanted, atol=1e-4, rtol=0)
    engine.close()


def test_a_neighbour_changes_no_bit_of_an_answer(kernels: Kernels) -> None:
    """Not to a tolerance: whatever else a step computes, and however the prompt is cut."""

    def logprobs(max_batch_tokens: int, num_others: int) -> list[list[float]]:
        engine = engine_of(prepare_model(build("llama"), kernels=kernels), max_batch_tokens=max_batch_tokens)
        work = Generate(12, GREEDY, num_logprobs=VOCABULARY)
        others = [EngineRequest(f"other {n}", prompt_of(3 + n), work) for n in range(num_others)]
        outputs = run(engine, [*others[:2], EngineRequest("own", prompt_of(33, seed=9), work), *others[2:]])
        engine.close()
        return [[value for _, value in event.logprobs.top] for event in outputs["own"] if event.logprobs is not None]

    alone = logprobs(64, 0)
    assert len(alone) == 12
    assert logprobs(64, 7) == alone
    assert logprobs(48, 3) == alone


def test_sixteen_bits_stay_sixteen_bits_and_compute_as_their_numbers_do_in_float32(kernels: Kernels) -> None:
    model, plain = build("llama"), build("llama")
    nn.Module.to(model, dtype=torch.bfloat16)
    nn.Module.to(plain, dtype=torch.bfloat16)
    nn.Module.to(plain, dtype=torch.float32)
    nn.Module.to(other := build("llama"), dtype=torch.bfloat16)
    nn.Module.to(other, dtype=torch.float32)
    pack_model(model, kernels)
    pack_model(other, kernels)
    kinds = [PackedLinear, PackedNorm, NarrowEmbedding]
    assert {kind for kind in kinds for module in model.modules() if isinstance(module, kind)} == set(kinds)
    packed = [module.packed for module in (*model.modules(), *other.modules()) if isinstance(module, PackedLinear)]
    assert {weights.dtype for weights in packed} == {torch.bfloat16}, "also those that were widened before"
    tokens = torch.tensor([prompt_of(20)])
    with torch.inference_mode():
        wanted = plain(tokens).logits
        torch.testing.assert_close(model(tokens).logits, wanted, atol=1e-5, rtol=1e-5)
        assert torch.equal(other(tokens).logits, model(tokens).logits)
    assert torch.equal(model.lm_head.weight, plain.lm_head.weight), "who looks at a weight sees its numbers"


def test_weights_that_16_bits_cannot_hold_are_kept(kernels: Kernels) -> None:
    exact = torch.tensor([[1.0, -2.5], [0.0, 2**-100]])
    assert narrowed(exact, kernels).dtype is torch.bfloat16
    assert torch.equal(narrowed(exact, kernels).float(), exact)
    for number in (1 + 2**-20, float("nan")):
        assert narrowed(torch.tensor([[1.0, number]]), kernels).dtype is torch.float32


def test_what_is_not_a_plain_layer_stays(kernels: Kernels) -> None:
    class Own(nn.Linear):
        """A layer with a forward of its own."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            """Twice the product."""
            return 2 * super().forward(x)

    class OddRMSNorm(nn.Module):
        """Named like a norm, and none."""

        def __init__(self) -> None:
            super().__init__()
            self.weight, self.eps = nn.Parameter(torch.ones(8)), 1e-6

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            """Just a product."""
            return x * self.weight

    model = nn.Sequential(Own(8, 8), OddRMSNorm(), nn.Linear(8, 8))
    x = torch.randn(4, 8)
    wanted = model(x)
    pack_model(model, kernels)
    assert [type(module) for module in model] == [Own, OddRMSNorm, PackedLinear]
    torch.testing.assert_close(model(x), wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_numbers_that_a_model_makes_are_those_of_float32(tmp_path: Path, kernels: Kernels, dtype: torch.dtype) -> None:
    """Gemma rounds the scale of its embeddings to the dtype that it is loaded in."""
    if dtype not in kernels.dtypes:
        pytest.skip(f"this processor does not widen {dtype}")
    model = build("gemma3")
    nn.Module.to(model, dtype=dtype)
    model.save_pretrained(tmp_path)
    packed = load_model(tmp_path, device="cpu", kernels="compiled")
    named = load_model(tmp_path, device="cpu", kernels="torch", dtype="float32")
    made = dict(named.module.named_buffers())
    shared = [name for name, buffer in packed.module.named_buffers() if name in made]
    assert shared
    for name in shared:
        assert torch.equal(packed.module.get_buffer(name), made[name]), name
