"""Forced responses, scores, branches and captures: what plain forward passes give."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from server.engine.errors import InvalidWork, WorkFailed
from server.engine.protocol import Engine
from server.engine.queries import branch, capture, capture_and_score, next_logprobs, score
from server.engine.request import Branch, Capture, EngineRequest, FinishReason, Force, Generate, Score
from server.steering.plan import UNSTEERED
from tests.families import build
from tests.reference import Steer, activations, steered_logits
from tests.server.engine.contract.engines import DEADLINE, MODEL, answer_of, answers_of
from tests.server.engine.driving import GREEDY, plan_of, prompt_of, random_direction
from vectors.vocabulary import SITES

PROMPT = prompt_of(13)
CHOICES = [(4,), (9,), (4, 7), (4, 8), (1, 2, 3), (4,)]
STEERS: list[tuple[Steer, ...]] = [
    (),
    (Steer(random_direction(1), 0),),
    (Steer(random_direction(2), 1, scale=-1.5), Steer(random_direction(3), 0, "mlp")),
    (Steer(random_direction(4), 2, operation="ablate"),),
    (Steer(random_direction(1), 0, scale=2.0),),
    (Steer(random_direction(5), 1, "attention", operation="clamp"),),
    (Steer(random_direction(6), 2, preserve_norm=True),),
]
BROKEN = plan_of(Steer(random_direction(1), 1, scale=1e38))
"""Infinite in float32, so that the logits are NaN from the first token of the response on."""


@functools.cache
def logprobs_after(response: tuple[int, ...], steers: tuple[Steer, ...] = ()) -> Tensor:
    """Log-probabilities `[tokens, vocabulary]` of a plain pass over the prompt and `response`."""
    return torch.log_softmax(steered_logits(build(MODEL), (*PROMPT, *response), steers, len(PROMPT)), -1)


def warm_up(engine: Engine) -> None:
    """Have the engine read the prompt, so that it may have kept what it computed of it."""
    answer_of(engine, EngineRequest("warm", PROMPT, Generate(1, GREEDY)))


@pytest.mark.parametrize("steers", [(), STEERS[2], (Steer(random_direction(2), 1, positions="all"),)])
def test_forced_tokens_have_the_log_probabilities_of_a_plain_pass(engine: Engine, steers: tuple[Steer, ...]) -> None:
    warm_up(engine)
    response, plan = (5, 6, 90, 7), plan_of(*steers)
    tokens, logprobs = (*PROMPT, *response), logprobs_after(response, steers)
    starts = (0, 1, 7, 12, 13, 15, 17)
    requests = [EngineRequest(str(start), PROMPT, Force(response, start, 3), plan) for start in starts]
    answers = answers_of(engine, requests)
    for start in starts:
        (event,) = answers[str(start)]
        assert (event.token_id, event.finish_reason) == (None, FinishReason.LENGTH)
        assert event.known_logprobs is not None
        assert len(event.known_logprobs) == len(tokens) - start
        for position, known in zip(range(start, len(tokens)), event.known_logprobs, strict=True):
            if position == 0:
                assert known is None
                continue
            assert known is not None
            row = logprobs[position - 1]
            assert known.token_id == tokens[position]
            assert known.logprob == pytest.approx(float(row[tokens[position]]), abs=1e-4)
            assert [token for token, _ in known.top] == row.topk(3).indices.tolist()
            assert [value for _, value in known.top] == pytest.approx(row.topk(3).values.tolist(), abs=1e-4)


@pytest.mark.parametrize("steers", [(), STEERS[2]])
def test_forced_tokens_have_all_log_probabilities_where_they_are_asked_for(
    engine: Engine, steers: tuple[Steer, ...]
) -> None:
    warm_up(engine)
    response, plan = (5, 6, 90, 7), plan_of(*steers)
    tokens, logprobs = (*PROMPT, *response), logprobs_after(response, steers)
    starts = (0, 1, 12, 15, len(tokens) - 1)
    requests = [EngineRequest(str(start), PROMPT, Force(response, start, keeps_rows=True), plan) for start in starts]
    answers = answers_of(engine, requests)
    for start in starts:
        (event,) = answers[str(start)]
        assert event.known_rows is not None
        torch.testing.assert_close(event.known_rows, logprobs[max(start, 1) - 1 : -1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("steers", [(), (Steer(random_direction(2), 1, scale=1.5),)])
def test_scores_equal_a_plain_pass(engine: Engine, steers: tuple[Steer, ...]) -> None:
    warm_up(engine)
    found = score(engine, PROMPT, CHOICES, plan=plan_of(*steers)).result(DEADLINE)
    for choice, logprobs in zip(CHOICES, found, strict=True):
        rows = logprobs_after(choice, steers)
        wanted = [float(rows[len(PROMPT) - 1 + index, token]) for index, token in enumerate(choice)]
        assert logprobs == pytest.approx(wanted, abs=1e-4)
    assert score(engine, PROMPT, []).result(DEADLINE) == []
    with pytest.raises(InvalidWork, match="at least one token"):
        score(engine, PROMPT, [(1,), ()])


def test_branches_equal_each_plan_alone(engine: Engine) -> None:
    tokens = (3, 50, 7)
    plans = [plan_of(*steers) for steers in STEERS]
    for length in (13, 1, 2):
        found = branch(engine, PROMPT[:length], tokens, plans).result(DEADLINE)
        model = build(MODEL)
        rows = [steered_logits(model, PROMPT[:length], steers)[-1] for steers in STEERS]
        wanted = torch.stack(rows)[:, list(tokens)]
        assert found.dtype is torch.float32
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def test_what_comes_next_under_one_plan_is_that_of_a_plain_pass(engine: Engine) -> None:
    tokens = (3, 50, 7)
    for steers in STEERS[:2]:
        found = next_logprobs(engine, PROMPT, tokens, plan=plan_of(*steers)).result(DEADLINE)
        wanted = torch.log_softmax(steered_logits(build(MODEL), PROMPT, steers)[-1], -1)[list(tokens)]
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    assert next_logprobs(engine, PROMPT, tokens, plan=BROKEN).result(DEADLINE).isnan().all()


def test_branches_share_what_their_request_steers_before_the_last_prompt_token(engine: Engine) -> None:
    shared = Steer(random_direction(2), 1, positions="prompt")
    steers = [(shared,), (shared, Steer(random_direction(1), 0))]
    plans = tuple(plan_of(*each) for each in steers)
    (event,) = answer_of(engine, EngineRequest("x", PROMPT, Branch(plans, (3, 50)), plans[0]))
    assert event.branch_logits is not None
    wanted = torch.stack([steered_logits(build(MODEL), PROMPT, each)[-1, [3, 50]] for each in steers])
    torch.testing.assert_close(event.branch_logits, wanted, atol=1e-4, rtol=1e-4)


def test_captures_equal_a_plain_pass(engine: Engine) -> None:
    warm_up(engine)
    positions = (-1, 0, 6)
    found = capture(engine, PROMPT, Capture((0, 2), SITES, positions)).result(DEADLINE)
    assert set(found) == {(site, layer) for site in SITES for layer in (0, 2)}
    model = build(MODEL)
    for (site, layer), rows in found.items():
        assert rows.dtype is torch.float32
        torch.testing.assert_close(rows, activations(model, PROMPT, site, layer)[list(positions)], atol=1e-4, rtol=1e-4)


def test_what_comes_next_and_activations_are_those_of_one_plain_pass(engine: Engine) -> None:
    warm_up(engine)
    work, plan = Capture((0, 2), SITES, (-1, 6), token_ids=(3, 50)), plan_of(*STEERS[1])
    found, logprobs = capture_and_score(engine, PROMPT, work, plan=plan).result(DEADLINE)
    wanted = torch.log_softmax(steered_logits(build(MODEL), PROMPT, STEERS[1])[-1], -1)[[3, 50]]
    torch.testing.assert_close(logprobs, wanted, atol=1e-4, rtol=1e-4)
    alone = capture(engine, PROMPT, Capture((0, 2), SITES, (-1, 6)), plan=plan).result(DEADLINE)
    assert found.keys() == alone.keys()
    for place, rows in found.items():
        torch.testing.assert_close(rows, alone[place], atol=1e-4, rtol=1e-4)
    found, logprobs = capture_and_score(engine, PROMPT, work, plan=BROKEN).result(DEADLINE)
    assert logprobs.isnan().all()
    assert {place: rows.isnan().all().item() for place, rows in found.items()} == dict.fromkeys(alone, True)
    assert {rows.shape for rows in found.values()} == {rows.shape for rows in alone.values()}


def test_a_capture_is_of_what_was_steered(engine: Engine) -> None:
    steer = Steer(random_direction(2), 0, positions="all", scale=2.0)
    plain, steered = (
        capture(engine, PROMPT, Capture((0,), positions=(3, -1)), plan=plan).result(DEADLINE)["residual", 0]
        for plan in (UNSTEERED, plan_of(steer))
    )
    torch.testing.assert_close(steered - plain, 2.0 * steer.direction.expand(2, -1), atol=1e-4, rtol=1e-4)


def test_what_is_not_finite_is_an_error_or_not_a_number(engine: Engine) -> None:
    scores = score(engine, PROMPT, [(1,), (2, 3)], plan=BROKEN)
    branches = branch(engine, PROMPT, (1, 3), [UNSTEERED, BROKEN, plan_of(*STEERS[1])])
    captured = capture(engine, PROMPT, Capture((0,)))
    with pytest.raises(WorkFailed, match="not finite"):
        scores.result(DEADLINE)
    assert branches.result(DEADLINE).isnan().tolist() == [[False] * 2, [True] * 2, [False] * 2]
    assert captured.result(DEADLINE)["residual", 0].isfinite().all()


def test_all_kinds_of_work_go_side_by_side(engine: Engine) -> None:
    """Each gives, among all the others, what it gives alone."""
    plan = plan_of(*STEERS[1])
    requests = [
        EngineRequest("generate", PROMPT, Generate(8, GREEDY), plan),
        EngineRequest("force", PROMPT, Force((1, 2, 3)), plan),
        EngineRequest("score", PROMPT, Score((4,), (7, 8)), plan),
        EngineRequest("branch", PROMPT, Branch((UNSTEERED, plan), (3, 50)), plan),
        EngineRequest("capture", PROMPT, Capture((1,), positions=tuple(range(13))), plan),
    ]

    def numbers(events: Sequence[object]) -> list[float]:
        last = answers[name][-1]
        tokens = [float(event.token_id) for event in answers[name] if event.token_id is not None]
        known = [known.logprob for known in last.known_logprobs or () if known is not None]
        scores = [value for row in last.scores or () for value in row]
        branches = [] if last.branch_logits is None else last.branch_logits.flatten().tolist()
        captured = [value for rows in (last.activations or {}).values() for value in rows.flatten().tolist()]
        return [*tokens, *known, *scores, *branches, *captured]

    alone = {}
    for request in requests:
        answers = answers_of(engine, [request])
        name = request.request_id
        alone[name] = numbers(answers[name])
        assert alone[name]
    again = [EngineRequest(f"{each.request_id} again", each.prompt, each.work, each.plan) for each in requests]
    answers = answers_of(engine, again)
    for request in requests:
        name = f"{request.request_id} again"
        assert numbers(answers[name]) == pytest.approx(alone[request.request_id], abs=1e-4)
