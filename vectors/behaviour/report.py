"""The report on generated behaviour as JSON, and every answer with its scores beside it as JSONL."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vectors.behaviour.answers import DECODINGS, SIDES, AnswerPair, Assessment
from vectors.behaviour.changes import SIGNIFICANCE, Change, as_perplexity, change_of, side_values
from vectors.behaviour.prompts import OpenPrompt
from vectors.behaviour.side_effects import BOUNDS, side_effects

WORRYING_RATIO = 1.5
"""The ratio of steered to unsteered perplexity above which a report warns."""

WORRYING_LENGTH = 0.25
"""The share by which answers may get longer or shorter before a report says so."""


@dataclass(frozen=True, slots=True)
class BehaviourReport:
    """The report (JSON), and `answers.jsonl`: a line for each pair of answers, in the order of the prompts.

    The report's `recommended` is true if every kind of evidence shows a significant rise; `reason` says which kinds
    there are.
    """

    report: dict[str, Any]
    answers: bytes


def behaviour_report(
    prompts: Sequence[OpenPrompt],
    pairs: Sequence[AnswerPair],
    assessments: Sequence[Assessment],
    about: Mapping[str, Any],
) -> BehaviourReport:
    """What `assessments`, at least one, say about `pairs`, with the side effects; `about` is put first in the report.

    Raises `MissingDependency`.
    """
    effects = [{side: side_effects(pair.of(side)) for side in SIDES} for pair in pairs]
    costs = {name: change_of(pairs, side_values(effects, name), BOUNDS.get(name)) for name in effects[0]["steered"]}
    verdicts = [_verdict(assessment, pairs) for assessment in assessments]
    report = {
        "kind": "generated",
        **about,
        "evidence": [_evidence(assessment, pairs) for assessment in assessments],
        "side_effects": _side_effects(costs),
        "notes": [*_unrated(assessments), *_harm(costs)],
        "recommended": all(helps for helps, _ in verdicts),
        "reason": "; ".join(says for _, says in verdicts),
    }
    lines = [
        _line(prompts[pair.prompt], pair, number, assessments, effects[number]) for number, pair in enumerate(pairs)
    ]
    answers = "".join(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines)
    # half of a surrogate pair, which a judge's JSON may contain, has no UTF-8
    return BehaviourReport(report, answers.encode(errors="replace"))


def _side_effects(costs: Mapping[str, Change | None]) -> dict[str, Any]:
    """Each change as JSON; that of the tokens' log-probability as perplexities."""
    shown: dict[str, Any] = {name: None if change is None else change.to_json() for name, change in costs.items()}
    nats = costs["nats_per_token"]
    del shown["nats_per_token"]
    return shown | {"perplexity": None if nats is None else as_perplexity(nats)}


def _evidence(assessment: Assessment, pairs: Sequence[AnswerPair]) -> dict[str, Any]:
    figures = {}
    for criterion in assessment.scores[0]["steered"]:
        values = side_values(assessment.scores, criterion)
        change = change_of(pairs, values, (assessment.lowest, assessment.highest))
        figures[criterion] = None if change is None else change.to_json() | {"by_decoding": _decodings(pairs, values)}
    return {
        "kind": assessment.kind,
        "by": assessment.by,
        **assessment.about,
        "lowest": assessment.lowest,
        "highest": assessment.highest,
        "headline": assessment.headline,
        "worthless": assessment.worthless,
        "figures": figures,
    }


def _decodings(pairs: Sequence[AnswerPair], values: Any) -> dict[str, Any]:
    """Unsteered and steered means of greedy and of sampled answers."""
    found = {decoding: change_of(pairs, values, decoding=decoding) for decoding in DECODINGS}
    return {
        decoding: {"unsteered": change.unsteered, "steered": change.steered}
        for decoding, change in found.items()
        if change is not None
    }


def _verdict(assessment: Assessment, pairs: Sequence[AnswerPair]) -> tuple[bool, str]:
    """Whether this evidence shows a rise, and what it shows, in a sentence that names it."""
    bounds = assessment.lowest, assessment.highest
    change = change_of(pairs, side_values(assessment.scores, assessment.headline), bounds)
    if change is None:
        return False, f"{assessment.by}: no pair of answers was rated"
    helps = change.difference > 0 and change.p < SIGNIFICANCE and assessment.worthless is None
    if assessment.kind == "judge":
        shown = f"{change.unsteered:.2f} → {change.steered:.2f} of {assessment.highest:g}"
    else:
        shown = f"{100 * change.unsteered:.1f} % → {100 * change.steered:.1f} % of answers"
    what = "score" if assessment.headline == "score" else "concept"
    found = "" if helps or assessment.worthless else ", no rise beyond chance"
    worthless = f" ({assessment.worthless})" if assessment.worthless else ""
    return helps, f"{assessment.by}: {what} {shown}{found}, one-sided p = {change.p:.2g}{worthless}"


def _unrated(assessments: Sequence[Assessment]) -> list[str]:
    notes = []
    for assessment in assessments:
        unparsable = assessment.about.get("unparsable")
        if unparsable is None:
            continue
        counts = {side: sum(unparsable[side].values()) for side in SIDES}
        if any(counts.values()):
            notes.append(
                f"the judge gave no clear rating {counts['unsteered']} times for unsteered and {counts['steered']} "
                "times for steered answers; those pairs are left out of the figures concerned"
            )
    return notes


def _harm(costs: Mapping[str, Change | None]) -> list[str]:
    """A sentence for each side effect that is significant and large enough to matter."""
    notes = []
    refusal, repetition, length, cut = (costs[name] for name in ("refusal", "repetition", "length", "cut"))
    for change, what in (
        (refusal, "refusals"),
        (repetition, "repetition"),
        (cut, "answers cut at the limit of tokens"),
    ):
        if change is not None and change.low > 0:
            notes.append(f"{what} rise from {100 * change.unsteered:.1f} % to {100 * change.steered:.1f} %")
    if (change := costs["nats_per_token"]) is not None and (found := as_perplexity(change))["ratio"] > WORRYING_RATIO:
        notes.append(
            f"the perplexity of what is written rises to {found['ratio']:.2f} times; read some answers, or try a "
            "smaller scale"
        )
    if length is not None and not length.low <= 0 <= length.high:
        share = length.difference / length.unsteered if length.unsteered else 0.0
        if abs(share) > WORRYING_LENGTH:
            longer = "longer" if share > 0 else "shorter"
            notes.append(f"answers get {longer}: {length.unsteered:.0f} → {length.steered:.0f} tokens")
    return notes


def _line(
    prompt: OpenPrompt, pair: AnswerPair, number: int, assessments: Sequence[Assessment], effects: Mapping[Any, Any]
) -> dict[str, Any]:
    """One pair of answers with everything that was found about it."""
    sides: dict[str, Any] = {}
    for side in SIDES:
        answer = pair.of(side)
        sides[side] = {
            "text": answer.text,
            "scores": {each.kind: each.scores[number][side] for each in assessments},
            "side_effects": effects[side],
        }
        replies = [each.replies[number][side] for each in assessments if each.replies is not None]
        if replies:
            sides[side]["judge_said"] = replies[0]
    return {
        "line": prompt.line,
        "messages": [{"role": message.role, "content": message.content} for message in prompt.messages],
        "decoding": pair.decoding,
        "seed": pair.seed,
        **sides,
    }
