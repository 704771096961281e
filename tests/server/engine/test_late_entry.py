"""Branches that skip blocks: what each block and the head compute, and which models have every block computed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from server.engine.branches import Branches
from server.engine.entry_points import EntryPoints
from server.engine.entry_probe import EntryProbe
from server.engine.fused_blocks import ORDER
from server.engine.request import Branch, Capture, EngineRequest, Generate
from server.engine.self_test import make_prompts
from server.steering.plan import UNSTEERED, SteeringPlan
from tests.families import LAYERS, build
from tests.reference import Steer, activations, steered_logits
from tests.server.engine.driving import (
    GREEDY,
    engine_of,
    fresh,
    loaded,
    plan_of,
    prompt_of,
    random_direction,
    run,
    tokens_of,
)
from vectors.vocabulary import SITES, Site

TOKENS = (3, 50, 7)
STEERS: list[tuple[Steer, ...]] = [
    (Steer(random_direction(number), layer, site, scale=scale),)
    for number, (site, layer) in enumerate((site, layer) for site in SITES for layer in range(LAYERS))
    for scale in (0.5, -2.0)
]
POINTS = EntryPoints(LAYERS)
FIRST_BLOCKS = [steer.layer + (steer.site == "residual") for (steer,) in STEERS]


def branching(prompt: tuple[int, ...]) -> EngineRequest:
    return EngineRequest("branch", prompt, Branch(tuple(plan_of(*steers) for steers in STEERS), TOKENS))


def rows_seen(module: nn.Module) -> list[int]:
    """Receives the number of tokens that `module` computes in each pass."""
    seen: list[int] = []

    def look(module: nn.Module, args: Any, output: Any) -> None:
        activation = output[0] if isinstance(output, tuple) else output
        seen.append(activation.numel() // activation.shape[-1])

    module.register_forward_hook(look)
    return seen


def test_a_branch_computes_only_the_blocks_that_its_steering_changes() -> None:
    model = fresh()
    assert model.allows_late_entry
    seen = [rows_seen(module) for module in model.sites.modules["mlp"]]
    engine = engine_of(model)
    run(engine, [branching(prompt_of(9))])
    engine.close()
    base = 1
    assert [passes[0] for passes in seen] == [8] * LAYERS
    assert [passes[1] for passes in seen] == [
        base + sum(first <= block for first in FIRST_BLOCKS) for block in range(LAYERS)
    ]


def test_the_head_computes_only_the_tokens_that_are_wanted() -> None:
    model = fresh()
    widths: list[int] = []
    head = model.module.get_output_embeddings()
    assert isinstance(head, nn.Module)
    head.register_forward_hook(lambda module, args, output: widths.append(output.shape[-1]))
    engine = engine_of(model)
    run(engine, [branching(prompt_of(9))])
    assert widths[-1] == len(TOKENS)
    widths.clear()
    run(engine, [branching(prompt_of(9)), EngineRequest("live", prompt_of(5), Generate(4, GREEDY))])
    assert set(widths) == {model.info.vocab_size}
    engine.close()


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3", "olmo2", "mixtral", "gpt_neox"])
def test_what_shares_a_step_with_branches_is_computed_as_alone(family: str) -> None:
    model = loaded(family)
    engine = engine_of(model)
    prompt = prompt_of(13)
    capture = Capture(tuple(range(LAYERS)), model.info.sites, tuple(range(13)))  # type: ignore[arg-type]  # they are sites
    steered = plan_of(Steer(random_direction(40), 1, operation="ablate", positions="all"))
    others = [
        EngineRequest("capture", prompt, capture),
        EngineRequest("live", prompt_of(6), Generate(6, GREEDY), steered),
    ]
    together = run(engine, [branching(prompt_of(17)), *others])
    alone = {name: events for each in others for name, events in run(engine, [each]).items()}
    engine.close()
    assert tokens_of(together["live"]) == tokens_of(alone["live"])
    found = together["capture"][0].activations
    assert found is not None
    plain = build(family)
    for (site, layer), rows in found.items():
        torch.testing.assert_close(rows, activations(plain, prompt, site, layer), atol=1e-4, rtol=1e-4)
    scores = together["branch"][0].branch_logits
    assert scores is not None
    expected = torch.stack([steered_logits(plain, prompt_of(17), steers)[-1][list(TOKENS)] for steers in STEERS])
    torch.testing.assert_close(scores, expected, atol=1e-4, rtol=1e-4)


class _Skip:
    """Adds what went into the first block to what goes into the last, from a block's input to another's."""

    def __init__(self, model: PreTrainedModel, *, resizes: bool) -> None:
        self._early: Tensor | None = None
        self._resizes = resizes
        blocks = model.model.layers
        blocks[0].register_forward_hook(self._keep)
        blocks[-1].register_forward_pre_hook(self._add, with_kwargs=True)

    def _keep(self, module: nn.Module, args: Any, output: Any) -> None:
        self._early = (output[0] if isinstance(output, tuple) else output).clone()

    def _add(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        (stream, *others) = args
        early = self._early
        assert early is not None
        if self._resizes and early.shape[1] < stream.shape[1]:
            early = torch.cat([early, stream.new_zeros(1, stream.shape[1] - early.shape[1], stream.shape[2])], 1)
        return (stream + early, *others), kwargs


@pytest.mark.parametrize("resizes", [False, True], ids=["fails", "computes something else"])
def test_a_model_whose_blocks_pass_on_a_second_stream_computes_every_block(resizes: bool) -> None:
    model = fresh()
    blocks = model.module.model.layers
    prompt = make_prompts(model.module, model.info.max_model_len)[-1]

    def install() -> bool:
        probe = EntryProbe(model.forward, blocks, model.attention, model.attention_layers, prompt, model.dtype)
        return probe.install()

    assert install()
    _Skip(model.module, resizes=resizes)
    num_hooks = [len(block._forward_pre_hooks) for block in blocks]
    assert not install()
    assert [len(block._forward_pre_hooks) for block in blocks] == num_hooks


def test_models_with_recurrent_states_compute_every_block() -> None:
    assert not loaded("lfm2").allows_late_entry


def layers_of(*layers: int) -> tuple[SteeringPlan, ...]:
    return tuple(plan_of(Steer(random_direction(layer), layer)) for layer in layers)


@pytest.mark.parametrize("budget", [1, 2, 3, 5, 100])
def test_every_branch_is_scored_once_in_chunks_of_any_size(budget: int) -> None:
    plans = (UNSTEERED, *layers_of(2, 0, 1, 2, 1), UNSTEERED)
    branches = Branches(plans, UNSTEERED, 9, POINTS)
    scored: list[int] = []
    while branches.num_rows:
        num_rows = min(budget, branches.num_rows)
        rows = branches.next(num_rows)
        assert len(rows.entries) == num_rows == len(rows.branches) + rows.has_base
        assert list(rows.entries) == sorted(rows.entries)
        assert rows.entries[0] == 0  # a row that enters late goes on from the stream of one that does not
        assert rows.has_base or not any(rows.entries)
        scored += rows.branches
        branches.add(torch.tensor([[float(branch)] for branch in rows.branches]))
    assert sorted(scored) == list(range(len(plans)))
    assert branches.logits.flatten().tolist() == list(range(len(plans)))


def test_branches_skip_blocks_only_if_that_saves_more_than_a_base_row_costs() -> None:
    assert not Branches(layers_of(0, 1), UNSTEERED, 9, POINTS).next(2).has_base
    assert Branches(layers_of(1, 1), UNSTEERED, 9, POINTS).next(3).has_base
    assert not Branches(layers_of(2, 2, 2), UNSTEERED, 9, None).next(3).has_base
    own = layers_of(0)[0]
    assert set(Branches((own, *layers_of(2, 2, 2, 2)), own, 9, POINTS).next(6).entries) == {0, 1, LAYERS}


@pytest.mark.parametrize("site", SITES)
def test_a_branch_of_fused_blocks_enters_after_the_place_that_it_changes(site: Site) -> None:
    points = EntryPoints(LAYERS, ORDER)
    plans = tuple(plan_of(Steer(random_direction(layer), layer, site)) for layer in (1, 2, 2, 1))
    rows = Branches(plans, UNSTEERED, 9, points).next(5)
    place = 1 + ("attention", "post_attention_norm", "mlp", "residual").index(site)
    assert list(rows.entries) == [0, 4 + place, 4 + place, 8 + place, 8 + place]


def test_logits_are_not_numbers_in_a_row_that_is_not_finite() -> None:
    branches = Branches((UNSTEERED,) * 3, UNSTEERED, 9, None)
    branches.add(torch.tensor([[1.0, 2.0], [1.0, torch.inf], [-torch.inf, 0.0]], dtype=torch.float16))
    assert branches.logits.dtype is torch.float32
    assert branches.logits.isnan().tolist() == [[False] * 2, [True] * 2, [True] * 2]
