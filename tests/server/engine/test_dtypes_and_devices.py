"""Half precision and accelerators: the same requests, close to a plain forward pass of the same weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from server.engine.model import prepare_model, resolve_device
from server.engine.refusal import ModelRefused
from server.engine.request import EngineRequest, Generate
from tests.families import VOCABULARY, build
from tests.reference import Steer, steered_logits
from tests.server.engine.driving import GREEDY, engine_of, plan_of, prompt_of, random_direction, run, tokens_of

STEERS = (
    Steer(random_direction(1), 0, positions="all"),
    Steer(random_direction(2), 2, "mlp", 0.7, operation="clamp", preserve_norm=True),
)


def check(device: str, dtype: torch.dtype, tolerance: float) -> None:
    """Each generated token's log-probabilities equal a plain steered pass over the tokens so far."""
    model, plain = build("llama"), build("llama")
    nn.Module.to(model, device=device, dtype=dtype)
    nn.Module.to(plain, dtype=dtype)
    engine = engine_of(prepare_model(model), max_batch_tokens=7)
    requests = [
        EngineRequest(
            f"{length} {bool(steers)}",
            prompt_of(length),
            Generate(8, GREEDY, num_logprobs=VOCABULARY),
            plan_of(*steers),
        )
        for length in (1, 12, 30)
        for steers in ((), STEERS)
    ]
    outputs = run(engine, requests)
    for request in requests:
        events = outputs[request.request_id]
        tokens = (*request.prompt, *tokens_of(events))
        steers = STEERS if request.plan.is_steered else ()
        logprobs = torch.log_softmax(steered_logits(plain, tokens, steers, len(request.prompt)), -1)
        for index, event in enumerate(events):
            assert event.logprobs is not None
            order, values = zip(*event.logprobs.top, strict=True)
            wanted = logprobs[len(request.prompt) - 1 + index][list(order)]
            torch.testing.assert_close(torch.tensor(values), wanted, atol=tolerance, rtol=0)
    engine.close()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.5), (torch.float16, 0.06)])
def test_half_precision_stays_close_to_a_plain_pass(dtype: torch.dtype, tolerance: float) -> None:
    check("cpu", dtype, tolerance)


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_accelerators_equal_the_cpu(device: str) -> None:
    try:
        resolve_device(device)
    except ModelRefused:
        pytest.skip(f"this machine has no {device}")
    check(device, torch.float32, 1e-3)


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(ModelRefused, match="expected one of auto, cpu"):
        resolve_device("abacus")
