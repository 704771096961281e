"""Families whose blocks differ from a Llama's: biases, norms before and after, and windows."""

from __future__ import annotations

import pytest

from server.engine.request import EngineRequest, Generate
from server.engine.vllm.start import start_vllm
from tests.families import WITH_WIDE_HEADS, build
from tests.reference import Steer, greedy
from tests.server.engine.contract.engines import answers_of
from tests.server.engine.driving import GREEDY, plan_of, prompt_of, random_direction, tokens_of
from tests.vllm.engines import options_of


@pytest.mark.parametrize("family", [family for family in WITH_WIDE_HEADS if family != "wide_llama"])
def test_every_site_is_what_transformers_calls_it(family: str) -> None:
    model = build(family)
    engine = start_vllm(options_of(family))
    try:
        cases = [()] + [
            (Steer(random_direction(layer), layer, site, positions="all", operation=operation),)
            for site in engine.info.sites
            for layer, operation in enumerate(("add", "clamp", "add"))
        ]
        prompt, work = prompt_of(40), Generate(5, GREEDY, num_logprobs=0)
        requests = [EngineRequest(str(n), prompt, work, plan_of(*steers)) for n, steers in enumerate(cases)]
        answers = answers_of(engine, requests)
    finally:
        engine.close()
    assert {"residual", "attention", "mlp"} <= set(engine.info.sites)
    for number, steers in enumerate(cases):
        tokens, logprobs = greedy(model, prompt, 5, steers)
        assert tokens_of(answers[str(number)]) == tokens, steers
        for at, event in enumerate(answers[str(number)]):
            assert event.logprobs is not None
            assert event.logprobs.logprob == pytest.approx(float(logprobs[at, tokens[at]]), abs=1e-4), steers
