"""Holds the engine against transformers on one model: tokens, log-probabilities, steering, capture, branches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from server.engine.engine import BatchingEngine
from server.engine.model import LoadedModel
from server.engine.queries import branch
from server.engine.request import Capture, EngineRequest, Force, Generate, SamplingParams, TokenOutput
from server.steering.plan import PlanEntry, SteeringPlan
from tests.families.plain import Added, Greedy, activations_of, generated, greedy_by_passes, logits_of, logprobs_of
from tests.server.engine.driving import engine_of, num_preemptions, prompt_of, run, tokens_of
from vectors.applied import AppliedVector
from vectors.sites import ModelSites, find_sites
from vectors.vector import SteeringVector
from vectors.vocabulary import SITES, NamedPositions, Site

TOLERANCE = 1e-4
"""In log-probabilities and, relative to their size, activations; float32. Some models differ more from themselves."""

_LARGEST_OWN_DIFFERENCE = 0.05
_LENGTHS = (1, 3, 9, 17, 30, 41)
_NUM_TOKENS = 12
_HEAD = 6  # how many of these a second turn repeats
_FIRST_WORD, _LAST_WORD = 3, 500  # no special tokens, no image tokens
_GREEDY = SamplingParams(temperature=0.0, ignore_eos=True)
_ENGINES: dict[str, dict[str, Any]] = {
    "default": {},
    "chunked": {"max_batch_tokens": 5},
    "no prefix cache": {"prefix_cache": False},
    "one at a time": {"max_running": 1},
    "preempted": {"num_pages": 20},
}


@dataclass
class Findings:
    """What does not agree, in words.

    `own_difference`: by how much the model's `generate`, token by token, differs from its own full pass;
    `follows_generate` is False when that is so much that only the full pass can be held to.
    """

    problems: list[str] = field(default_factory=list)
    own_difference: float = 0.0
    follows_generate: bool = True

    @property
    def tolerance(self) -> float:
        """The difference that is none."""
        return max(TOLERANCE, 3 * self.own_difference) if self.follows_generate else TOLERANCE

    @property
    def caveat(self) -> str:
        """What limits the comparison, in words; empty for most models."""
        if self.own_difference <= TOLERANCE:
            return ""
        held = f"within {self.tolerance:.0e}" if self.follows_generate else "as a full pass"
        return f"{held}: `generate` differs from a full pass by {self.own_difference:.0e}"

    @property
    def margin(self) -> float:
        """How far ahead a token must be to be expected."""
        return 10 * self.tolerance

    def differ(self, what: str, difference: float) -> None:
        """Note `difference` of `what`; beyond the tolerance (or NaN) it is a problem."""
        if not difference <= self.tolerance:
            self.problems.append(f"{what} differ by {difference:.2g}")


def check_model(plain: PreTrainedModel, loaded: LoadedModel) -> Findings:
    """All checks of `loaded` against `plain`, the same weights in transformers alone. Raises what the engine raises."""
    findings = Findings()
    prompts = [_prompt(length) for length in _LENGTHS]
    expected = [_reference(plain, prompt) for prompt in prompts]
    findings.own_difference = max(
        _own_difference(plain, prompt, reference) for prompt, reference in zip(prompts, expected, strict=True)
    )
    if not findings.own_difference <= _LARGEST_OWN_DIFFERENCE:  # two models in one: its full pass is held to
        findings.follows_generate = False
        expected = [greedy_by_passes(plain, prompt, _NUM_TOKENS) for prompt in prompts]
    for name, changes in _ENGINES.items():
        with _engine(loaded, **changes) as engine:
            _check_greedy(engine, name, prompts, expected, findings)
            if name == "default":
                _check_second_turn(engine, prompts, expected, findings)
            if name == "preempted" and not num_preemptions(engine):
                findings.problems.append("nothing was preempted: the check has too many pages")
    with _engine(loaded, max_batch_tokens=24) as engine:
        sites = find_sites(plain)
        _check_known(engine, plain, findings)
        for site in sites.sites:
            if site not in loaded.info.sites:
                continue
            for layer in sorted({0, 1, loaded.info.num_layers // 2, loaded.info.num_layers - 1}):
                _check_place(engine, plain, sites, site, layer, findings)
        _check_steered_generation(engine, plain, sites, findings)
        _check_branches(engine, plain, sites, findings)
    return findings


def check_runs(loaded: LoadedModel) -> Findings:
    """That a model in another dtype answers at all: no failed request, finite log-probabilities."""
    findings = Findings()
    requests = [EngineRequest(str(length), _prompt(length), Generate(4, _GREEDY, 1)) for length in _LENGTHS[:4]]
    with _engine(loaded) as engine:
        for name, events in run(engine, requests).items():
            if events[-1].error or len(tokens_of(events)) != 4:
                findings.problems.append(f"bfloat16, prompt of {name}: {events[-1].error}")
    return findings


def _prompt(length: int, seed: int = 0) -> tuple[int, ...]:
    return tuple(_FIRST_WORD + token for token in prompt_of(length, seed, _LAST_WORD - _FIRST_WORD))


def _reference(plain: PreTrainedModel, prompt: Sequence[int]) -> Greedy:
    """By `generate` where the model has one that works on text alone."""
    try:
        return generated(plain, prompt, _NUM_TOKENS)
    except Exception:  # a multimodal model's `generate` may want an image: its full passes say the same
        return greedy_by_passes(plain, prompt, _NUM_TOKENS)


def _own_difference(plain: PreTrainedModel, prompt: Sequence[int], reference: Greedy) -> float:
    """By how much a full pass over prompt and answer differs from `reference` in the chosen tokens."""
    rows = logprobs_of(plain, (*prompt, *reference.tokens))[len(prompt) - 1 : -1]
    chosen = torch.tensor(reference.tokens).unsqueeze(1)
    return float((rows.gather(1, chosen) - reference.logprobs.gather(1, chosen)).abs().max())


@contextmanager
def _engine(loaded: LoadedModel, **changes: Any) -> Iterator[BatchingEngine]:
    """An engine for the length of a block."""
    engine = engine_of(loaded, **changes)
    try:
        yield engine
    finally:
        engine.close()


def _check_greedy(
    engine: BatchingEngine,
    name: str,
    prompts: Sequence[tuple[int, ...]],
    expected: Sequence[Greedy],
    findings: Findings,
) -> None:
    work = Generate(_NUM_TOKENS, _GREEDY, num_logprobs=1)
    outputs = run(engine, [EngineRequest(str(index), prompt, work) for index, prompt in enumerate(prompts)])
    for prompt, reference, events in zip(prompts, expected, outputs.values(), strict=True):
        _compare(f"{name}, prompt of {len(prompt)}", events, reference, findings)


def _compare(what: str, events: Sequence[TokenOutput], reference: Greedy, findings: Findings) -> None:
    """Compare the tokens up to the reference's first tie, and their log-probabilities."""
    if events[-1].error is not None:
        findings.problems.append(f"{what}: {events[-1].error}")
        return
    length = reference.first_tie(findings.margin)
    tokens = tokens_of(list(events))
    if tokens[:length] != reference.tokens[:length]:
        first = next(at for at, (a, b) in enumerate(zip(tokens, reference.tokens, strict=False)) if a != b)
        findings.problems.append(f"{what}: tokens differ from token {first}")
        return
    for event, row in zip(events[:length], reference.logprobs, strict=False):
        if event.logprobs is not None:
            difference = abs(event.logprobs.logprob - float(row[event.logprobs.token_id]))
            findings.differ(f"{what}: log-probabilities", difference)


def _check_second_turn(
    engine: BatchingEngine, prompts: Sequence[tuple[int, ...]], expected: Sequence[Greedy], findings: Findings
) -> None:
    """Prompts that repeat the first turn's answers come from the prefix cache, and go on alike."""
    rest = Generate(_NUM_TOKENS - _HEAD, _GREEDY)
    requests = [
        EngineRequest(str(index), prompt + tuple(reference.tokens[:_HEAD]), rest)
        for index, (prompt, reference) in enumerate(zip(prompts, expected, strict=True))
        if reference.first_tie(findings.margin) >= _HEAD
    ]
    num_cached = 0
    for name, events in run(engine, requests).items():
        reference = expected[int(name)]
        _compare(
            f"second turn, prompt of {len(prompts[int(name)])}",
            events,
            Greedy(reference.tokens[_HEAD:], reference.logprobs[_HEAD:]),
            findings,
        )
        num_cached = max(num_cached, events[-1].num_cached_tokens)
    if not num_cached and any(len(request.prompt) > 8 for request in requests):
        findings.problems.append("the second turn had nothing from the prefix cache")


def _known(events: Sequence[TokenOutput], what: str, findings: Findings) -> list[float] | None:
    """The log-probabilities of a `Force`, from the second token on."""
    found = events[-1].known_logprobs
    if found is None:
        findings.problems.append(f"{what}: {events[-1].error}")
        return None
    return [entry.logprob for entry in found if entry is not None]


def _of_tokens(rows: Tensor, tokens: Sequence[int]) -> Tensor:
    """The log-probability of each token after the first."""
    return rows[:-1].gather(1, torch.tensor(tokens[1:]).unsqueeze(1)).squeeze(1)


def _neighbours() -> Iterator[EngineRequest]:
    for index, length in enumerate((21, 13)):
        yield EngineRequest(f"neighbour {index}", _prompt(length, seed=8), Generate(2, _GREEDY))


def _check_known(engine: BatchingEngine, plain: PreTrainedModel, findings: Findings) -> None:
    tokens = _prompt(33, seed=5)
    outputs = run(engine, [EngineRequest("known", tokens, Force()), *_neighbours()])
    found = _known(outputs["known"], "known tokens", findings)
    if found is not None:
        expected = _of_tokens(logprobs_of(plain, tokens), tokens)
        findings.differ("known log-probabilities", float((torch.tensor(found) - expected).abs().max()))


def _check_place(
    engine: BatchingEngine, plain: PreTrainedModel, sites: ModelSites, site: Site, layer: int, findings: Findings
) -> None:
    """A direction added at `site` of `layer`: log-probabilities, captured activations, and that it does anything."""
    tokens = _prompt(33, seed=5)
    what = f"{site} of layer {layer}"
    direction = _direction(engine, 77 + layer)
    plan = _plan(engine, site, layer, direction, "all")
    capture = Capture((layer,), (site,), tuple(range(len(tokens))))
    requests = [EngineRequest("known", tokens, Force(), plan), EngineRequest("capture", tokens, capture, plan)]
    outputs = run(engine, [*requests, *_neighbours()])
    added = Added(sites.modules[site][layer], direction)
    rows = logprobs_of(plain, tokens, [added])
    found = _known(outputs["known"], what, findings)
    if found is not None:
        difference = (torch.tensor(found) - _of_tokens(rows, tokens)).abs().max()
        findings.differ(f"{what}: steered log-probabilities", float(difference))
    activations = outputs["capture"][-1].activations
    if activations is None:
        findings.problems.append(f"{what}: {outputs['capture'][-1].error}")
    else:
        seen = activations_of(plain, tokens, added)
        difference = (activations[site, layer] - seen).abs().max() / seen.abs().max().clamp(min=1.0)
        findings.differ(f"{what}: captured activations", float(difference))
    if not (rows - logprobs_of(plain, tokens)).abs().max() > 1e-2:
        findings.problems.append(f"{what}: steering there changes nothing in the model itself")


def _check_steered_generation(
    engine: BatchingEngine, plain: PreTrainedModel, sites: ModelSites, findings: Findings
) -> None:
    """A whole generation under steering, packed with others that are not steered."""
    prompt = _prompt(14, seed=2)
    site = _first_site(engine)
    direction = _direction(engine, 5)
    work = Generate(_HEAD, _GREEDY, num_logprobs=1)
    plan = _plan(engine, site, 1, direction, "all")
    outputs = run(engine, [EngineRequest("steered", prompt, work, plan), *_neighbours()])
    reference = greedy_by_passes(plain, prompt, _HEAD, [Added(sites.modules[site][1], direction)])
    _compare("steered generation", outputs["steered"], reference, findings)


def _check_branches(engine: BatchingEngine, plain: PreTrainedModel, sites: ModelSites, findings: Findings) -> None:
    """One prompt under many plans that differ at its last token."""
    prompt, choices = _prompt(26, seed=3), [5, 9, 77, 200]
    site = _first_site(engine)
    places = [(index % engine.info.num_layers, _direction(engine, 900 + index)) for index in range(5)]
    plans = [_plan(engine, site, layer, direction, "response") for layer, direction in places]
    future = branch(engine, prompt, choices, plans)
    while engine.step():
        pass
    expected = [
        logits_of(plain, prompt, [Added(sites.modules[site][layer], direction, only_last=True)])[-1, choices]
        for layer, direction in places
    ]
    differences = future.result(timeout=0) - torch.stack(expected).detach()
    findings.differ("branches", float(differences.abs().max()))


def _first_site(engine: BatchingEngine) -> Site:
    return next(site for site in SITES if site in engine.info.sites)


def _direction(engine: BatchingEngine, seed: int) -> Tensor:
    return torch.randn(engine.info.hidden_size, generator=torch.Generator().manual_seed(seed)) * 2


def _plan(engine: BatchingEngine, site: Site, layer: int, direction: Tensor, positions: NamedPositions) -> SteeringPlan:
    vector = SteeringVector(directions={layer: direction}, site=site)
    applied = AppliedVector(site, (layer,), 1.0, positions, "add", False, vector.directions)
    return SteeringPlan([PlanEntry("test", vector.revision, applied, vector.parts)])
