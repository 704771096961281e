"""Probe scores as answers show them, of the tokens of a piece and of a whole choice; and what its gates let through."""

from __future__ import annotations

from collections.abc import Sequence

from server.api.generation.objects import GateCount, ProbeScores, ProbeScoresDelta
from server.api.generation.running import Choice
from server.engine.request import TokenReadings
from server.steering.plan import PlanProbe
from vectors.positions import Window


def shown_scores(choice: Choice) -> dict[str, ProbeScores]:
    """The scores of a choice so far, by the probe's name, with their summary."""
    shown: dict[str, ProbeScores] = {}
    for number, probe in enumerate(choice.request.plan.probes):
        threshold, mean, most, above = _summary(choice, probe, number)
        shown[probe.name] = {
            "layer": probe.place[1],
            "scores": _scores(probe, number, choice.readings),
            "threshold": threshold,
            "mean": mean,
            "max": most,
            "above": above,
        }
        prompt = _prompt_scores(number, choice.readings)
        if prompt is not None:
            shown[probe.name]["prompt_scores"] = prompt
    return shown


def shown_gates(choice: Choice) -> list[GateCount]:
    """How many tokens each gate has let through so far, in the order of the plan's entries."""
    plan = choice.request.plan
    counts = choice.readings[-1].gates if choice.readings else ((0, 0),) * len(plan.gated)
    numbers = [number for number, entry in enumerate(plan.entries) if entry.gate is not None]
    return [
        {"entry": number, "vector": plan.entries[number].vector or None, "open": num_open, "of": num_gated}
        for number, (num_open, num_gated) in zip(numbers, counts, strict=True)
    ]


def shown_delta(
    choice: Choice, readings: Sequence[TokenReadings], *, has_summary: bool = False
) -> dict[str, ProbeScoresDelta]:
    """The scores of the tokens of an event, with the summary of the whole choice if `has_summary`."""
    found: dict[str, ProbeScoresDelta] = {}
    for number, probe in enumerate(choice.request.plan.probes):
        shown: ProbeScoresDelta = {"layer": probe.place[1], "scores": _scores(probe, number, readings)}
        prompt = _prompt_scores(number, readings)
        if prompt is not None:
            shown["prompt_scores"] = prompt
        if has_summary:
            shown["threshold"], shown["mean"], shown["max"], shown["above"] = _summary(choice, probe, number)
        found[probe.name] = shown
    return found


def _scores(probe: PlanProbe, number: int, readings: Sequence[TokenReadings]) -> list[float | None]:
    """One of each token; none at all if the probe does not read the response."""
    positions = probe.positions
    if (positions.of if isinstance(positions, Window) else positions) == "prompt":
        return []
    return [told.scores[number] for told in readings if told.scores]


def _prompt_scores(number: int, readings: Sequence[TokenReadings]) -> list[float | None] | None:
    for told in readings:
        if told.prompt is not None and (prompt := told.prompt[number]) is not None:
            return list(prompt)
    return None


def _summary(choice: Choice, probe: PlanProbe, number: int) -> tuple[float, float | None, float | None, int]:
    """Threshold, mean, maximum and the number above, over every position that the probe read.

    The last prompt token is both of the prompt and of the response, and counts once.
    """
    prompt = _prompt_scores(number, choice.readings)
    response = _scores(probe, number, choice.readings)
    every = [score for score in (response if prompt is None else prompt + response[1:]) if score is not None]
    mean = sum(every) / len(every) if every else None
    return probe.threshold, mean, max(every, default=None), sum(score > probe.threshold for score in every)
