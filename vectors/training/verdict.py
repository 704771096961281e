"""The verdict: the rules that a vector must pass to be recommended, each with its figure and whether it passes.

    held_out              the vector was not trained on the file that it is tested on, as far as is known
    validation            a steered cell of the search answers more validation items correctly than the unsteered model
    gain                  the mean gain on held-out items is above 0
    over_chance           the mean of score minus one in k is above 0: more than guessing, or one letter for everything
    over_text             more than the best answer by the options' texts alone, such as No to everything
    seeds                 with several seeds, the mean gain over all of them is above 0
    retention_accuracy    other items lose no more accuracy than allowed
    retention_perplexity  given texts become no more perplexing than allowed

All must pass. A test passes below p = 0.05; since all must, the chance that a vector without effect passes is below
that too, without an adjustment for their number (Berger 1982, "Multiparameter hypothesis testing and acceptance
sampling"). The vector that is tested was chosen on other items, so neither does the size of the search matter.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vectors.training.held_out import HeldOutResult
from vectors.training.method import Method
from vectors.training.retention import OWN_TEXTS, SIGNIFICANCE
from vectors.training.significance import SeedsTest

_LEAK = 0.02  # of the gain as presented; below that the letters are not worth naming


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule: its `figure` (a mean that is tested, a loss or a ratio), its p if it has one, and its sentence."""

    name: str
    passed: bool
    figure: float | None
    p: float | None
    says: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """All rules that apply, in order."""

    rules: tuple[Rule, ...]
    reason: str

    @property
    def is_recommended(self) -> bool:
        """Whether all rules pass."""
        return all(rule.passed for rule in self.rules)

    def to_json(self) -> dict[str, Any]:
        """As shown in the report."""
        rules = [dataclasses.asdict(rule) for rule in self.rules]
        return {"recommended": self.is_recommended, "reason": self.reason, "rules": rules}


def verdict_of(
    test: HeldOutResult,
    method: Method,
    retention: Mapping[str, Any],
    *,
    is_held_out: bool = True,
    unsteered_wins: bool | None = None,
    gains: Sequence[float] = (),
    over_seeds: SeedsTest | None = None,
    baselines: Sequence[Mapping[str, Any]] = (),
) -> Verdict:
    """The verdict on a test and a report's `retention`.

    `is_held_out`: False when an existing vector was trained on the file, no one knows on which of its items.
    `unsteered_wins`: whether no cell of the search beat the unsteered model, None without a search. `gains` are those
    of all seeds, tested by `over_seeds`. `baselines`: the report's table; the reason says so where prompting does as
    well, which no rule forbids.
    """
    rules = [] if is_held_out else [_NOT_HELD_OUT]
    rules += [] if unsteered_wins is None else [_validation(unsteered_wins)]
    rules += [_gain(test), _over_chance(test), _over_text(test)]
    if over_seeds is not None:
        rules.append(_seeds(gains, over_seeds))
    rules += _retention(retention, method)
    return Verdict(tuple(rules), "; ".join([_reason(rules, test), *_prompting(baselines)]))


def _prompting(baselines: Sequence[Mapping[str, Any]]) -> list[str]:
    """Where prompting gains and the vector is not significantly better."""
    found = []
    for baseline in baselines:
        if baseline["name"] not in _PROMPTING or "gain" not in baseline or baseline["gain"] <= 0:
            continue
        over = baseline["vector_over"]
        if over["gain"] > 0 and over["p"] < SIGNIFICANCE:
            continue
        does = "better" if over["ci95"][1] < 0 else "as well"
        found.append(
            f"{_PROMPTING[baseline['name']]} does {does}: {100 * baseline['accuracy']['value']:.1f} %, the vector "
            f"{100 * over['gain']:+.1f} points from that, {over['method']} p = {over['p']:.2g}"
        )
    return found


_PROMPTING = {"prompt": "a system prompt", "icl": "a prompt with solved examples"}

_NOT_HELD_OUT = Rule(
    "held_out",
    False,
    None,
    None,
    "the vector was trained on this file, and its record does not say on which of the items, so none of them is known "
    "to be held out",
)


def _reason(rules: Sequence[Rule], test: HeldOutResult) -> str:
    """The first rule that fails, or else the gain; with the letters' part where it is large."""
    failed = next((rule for rule in rules if not rule.passed), None)
    leak = _leak(test)
    if failed is not None:
        if leak is not None and failed.name in ("gain", "over_chance", "over_text"):
            return f"{leak}; {failed.says}"
        return failed.says
    gain = next(rule for rule in rules if rule.name == "gain")
    return gain.says if leak is None else f"{gain.says}; {leak}"


def _leak(test: HeldOutResult) -> str | None:
    presented = test.presented.gain
    if presented <= _LEAK or test.letter_bias <= presented / 2:
        return None
    return (
        f"letter bias: {100 * min(test.letter_bias, presented):+.1f} of the {100 * presented:+.1f} points come from "
        "the choice of letter and vanish when the options are rotated"
    )


def _validation(unsteered_wins: bool) -> Rule:
    says = (
        "no steered cell answered more validation items correctly than the unsteered model"
        if unsteered_wins
        else "a steered cell answered more validation items correctly than the unsteered model"
    )
    return Rule("validation", not unsteered_wins, None, None, says)


def _gain(test: HeldOutResult) -> Rule:
    paired = test.paired
    passed = paired.gain > 0 and paired.p < SIGNIFICANCE
    points = f"{100 * paired.gain:+.1f} points"
    found = f"{points} on held-out items" if passed else f"the test shows no gain beyond chance: {points}"
    return Rule("gain", passed, paired.gain, paired.p, f"{found}, {paired.method} p = {paired.p:.2g}")


def _over_chance(test: HeldOutResult) -> Rule:
    tested = test.over_chance
    passed = tested.mean.value > 0 and tested.p < SIGNIFICANCE
    chance = 100 * (test.steered.value - tested.mean.value)
    above = "significantly above" if passed else "not significantly above"
    says = (
        f"{100 * test.paired.gain:+.1f} points, but " if not passed else ""
    ) + f"{100 * test.steered.value:.1f} % is {above} guessing or always saying one letter ({chance:.1f} %)"
    return Rule("over_chance", passed, tested.mean.value, tested.p, f"{says}, p = {tested.p:.2g}")


def _over_text(test: HeldOutResult) -> Rule:
    tested = test.over_text
    passed = tested.mean.value > 0 and tested.p < SIGNIFICANCE
    above = "significantly above" if passed else "not significantly above"
    answer = "answering by the options' texts alone"
    says = (
        f"{100 * test.paired.gain:+.1f} points, but " if not passed else ""
    ) + f"{100 * test.steered.value:.1f} % is {above} {answer} ({100 * test.text_accuracy:.1f} %), p = {tested.p:.2g}"
    if not passed and test.text is not None:
        shares = f"{100 * test.text.before:.1f} → {100 * test.text.after:.1f} %"
        says += f"; it says {_short(test.text.text)} to {shares} of the items that offer it"
    return Rule("over_text", passed, tested.mean.value, tested.p, says)


def _seeds(gains: Sequence[float], tested: SeedsTest) -> Rule:
    passed = tested.mean > 0 and tested.p is not None and tested.p < SIGNIFICANCE
    num_gaining = sum(gain > 0 for gain in gains)
    p = "none" if tested.p is None else f"{tested.p:.2g}"
    says = (
        f"{'the seeds agree' if passed else 'the seeds disagree, or are too few'}: {num_gaining} of {len(gains)} gain, "
        f"{100 * tested.mean:+.1f} points on average, corrected resampled t-test p = {p}"
    )
    return Rule("seeds", passed, tested.mean, tested.p, says)


def _retention(retention: Mapping[str, Any], method: Method) -> list[Rule]:
    rules = []
    accuracy, perplexity = retention["accuracy"], retention["perplexity"]
    if accuracy is not None:
        loss, p = accuracy["loss"]["value"], accuracy["loss"]["p"]
        passed = loss <= method.max_loss
        says = (
            f"retention: accuracy on other items changes by {-100 * loss + 0.0:+.1f} points (p = {p:.2g}), "
            f"{'within' if passed else 'beyond'} the {100 * method.max_loss:g} points of max_loss"
        )
        rules.append(Rule("retention_accuracy", passed, loss, p, says))
    if perplexity is not None and perplexity["texts"] != OWN_TEXTS:
        ratio = perplexity["ratio"]
        passed = ratio <= method.max_perplexity
        says = (
            f"retention: the perplexity of the texts becomes {ratio:.2f} times what it was, "
            f"{'within' if passed else 'beyond'} the {method.max_perplexity:g} times of max_perplexity"
        )
        rules.append(Rule("retention_perplexity", passed, ratio, perplexity["p"], says))
    return rules


def _short(text: str) -> str:
    line = " ".join(text.split())
    return f'"{line if len(line) <= 60 else f"{line[:59]}…"}"'
