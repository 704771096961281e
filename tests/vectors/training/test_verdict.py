"""The verdict: what each rule lets pass, and by simulation how often sets without an effect, and with one, pass all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from tests.vectors.training.simulated import NO_RETENTION, Kind, planted, training
from vectors.training.constant_answers import best_presented_letter, best_text, text_scores
from vectors.training.held_out import held_out_result
from vectors.training.method import Method
from vectors.training.outcomes import ItemOutcome, TextOutcome
from vectors.training.retention import OWN_TEXTS, harm_of, retention_report
from vectors.training.significance import corrected_seeds_test, paired_test, seeds_test
from vectors.training.statistics import accuracy_of
from vectors.training.verdict import Verdict, verdict_of


def item(answer: int, before: int, after: int, *choices: str, line: int = 0, group: str | None = None) -> ItemOutcome:
    """An item answered alike under every rotation."""
    texts = choices or (f"a {line}", f"b {line}")
    orders = tuple(tuple((place + first) % len(texts) for place in range(len(texts))) for first in range(len(texts)))
    return ItemOutcome(line, group, texts, answer, orders, (before,) * len(texts), (after,) * len(texts))


def judged(items: list[ItemOutcome], **options: object) -> Verdict:
    method = Method.from_json(options)
    return verdict_of(held_out_result(tuple(items)), method, NO_RETENTION)


def failed(verdict: Verdict) -> list[str]:
    return [rule.name for rule in verdict.rules if not rule.passed]


def test_what_helps_passes_every_rule_and_the_reason_is_its_gain() -> None:
    verdict = judged([item(1, 0, 1, line=line) for line in range(40)])
    assert verdict.is_recommended
    assert [rule.name for rule in verdict.rules] == ["gain", "over_chance", "over_text"]
    assert verdict.reason == "+100.0 points on held-out items, one-sided exact McNemar test p = 9.1e-13"
    assert verdict.to_json()["rules"][0]["figure"] == 1.0


def test_less_than_half_right_of_many_options_is_above_chance() -> None:
    """45 % of three options, up from a fifth."""
    names = [(f"a {line}", f"b {line}", f"c {line}") for line in range(200)]
    items = [item(0, 0 if line < 40 else 1, 0 if line < 90 else 1, *names[line], line=line) for line in range(200)]
    assert judged(items).is_recommended


def test_saying_the_commonest_text_is_no_gain_and_the_text_is_named() -> None:
    items = [item(int(line % 5 != 0), 0, 1, "Yes", "No", line=line) for line in range(100)]
    verdict = judged(items)
    assert failed(verdict) == ["over_text"]
    assert '"No" to 0.0 → 100.0 % of the items that offer it' in verdict.reason
    found = best_text(items)
    assert found is not None
    assert (found.text, found.offered, found.before, found.after) == ("No", 100, 0.0, 1.0)
    assert found.accuracy == pytest.approx(0.8)


def test_texts_that_mean_the_same_are_one_answer() -> None:
    """BBQ words "unknown" in ten ways; no single one is common."""
    ways = ("Unknown", "Not known", "Can't tell")
    items = [item(0 if line % 10 < 7 else 1, 1, 0, ways[line % 3], f"x {line}", f"y {line}") for line in range(120)]
    assert text_scores(items).mean() == pytest.approx(0.7)
    assert "over_text" in failed(judged(items))


def test_a_text_is_known_from_other_items_only() -> None:
    """Texts that do not repeat, or only in the same group, say nothing."""
    items = [item(1, 0, 1, line=line) for line in range(6)]
    assert text_scores(items).tolist() == [0.5] * 6
    assert best_text(items) is None
    copies = [item(1, 0, 1, "this", "that", group="a") for _ in range(6)]
    assert text_scores(copies).tolist() == [0.5] * 6
    apart = [item(1, 0, 1, "this", "THAT ", line=line) for line in range(6)]
    assert text_scores(apart).tolist() == [1.0] * 6


def test_the_letter_that_is_right_most_often_as_presented() -> None:
    items = [item(1, 0, 1, line=line) for line in range(3)] + [item(0, 0, 1)]
    assert best_presented_letter(items) == ("B", 0.75)


def test_copies_of_an_item_are_not_evidence() -> None:
    copies = [item(1, 0, 1, line=line, group=str(line % 4)) for line in range(80)]
    assert "over 4 groups" in judged(copies).reason
    assert failed(judged(copies)) == ["gain", "over_chance", "over_text"]


@pytest.mark.parametrize(("others", "passes"), [([0.4, 0.5, 0.45, 0.5], True), ([0.0, -0.1, 0.05, -0.2], False)])
def test_a_lucky_first_seed_is_not_enough(others: list[float], passes: bool) -> None:
    test = held_out_result(tuple(item(1, int(line % 2), 1, line=line) for line in range(40)))
    gains = [test.paired.gain, *others]
    over_seeds = corrected_seeds_test(gains, [0.05] * 5, 1 / 3)
    verdict = verdict_of(test, Method(), NO_RETENTION, gains=gains, over_seeds=over_seeds)
    assert verdict.is_recommended is passes
    if not passes:
        assert failed(verdict) == ["seeds"]
        assert "the seeds disagree, or are too few: 2 of 5 gain" in verdict.reason


def test_a_loss_elsewhere_counts() -> None:
    test = held_out_result(tuple(item(1, 0, 1, line=line) for line in range(40)))
    kept = [item(1, 1, int(line >= 15), line=line) for line in range(100)]
    found = retention_report(kept, (), OWN_TEXTS)
    assert found["accuracy"]["loss"]["value"] == pytest.approx(0.15)
    assert found["accuracy"]["loss"]["p"] == pytest.approx(0.5**15)
    assert len(harm_of(found)) == 1
    verdict = verdict_of(test, Method(), found)
    assert failed(verdict) == ["retention_accuracy"]
    assert "beyond the 5 points of max_loss" in verdict.reason
    assert verdict_of(test, Method(max_loss=0.2), found).is_recommended
    assert verdict_of(test, Method(max_loss=0.15), found).is_recommended


def test_perplexity_counts_where_texts_are_given() -> None:
    test = held_out_result(tuple(item(1, 0, 1, line=line) for line in range(40)))
    texts = [TextOutcome(line, 10, -20.0 - line, -26.0 - line) for line in range(20)]
    given = retention_report((), texts, "retention_file")
    assert given["perplexity"]["ratio"] == pytest.approx(np.exp(0.6))
    assert failed(verdict_of(test, Method(), given)) == ["retention_perplexity"]
    assert verdict_of(test, Method(max_perplexity=2.0), given).is_recommended
    assert verdict_of(test, Method(), retention_report((), texts, OWN_TEXTS)).is_recommended


def shares(kind: Kind, count: int, num_options: tuple[int, ...]) -> tuple[list[int], Counter[str]]:
    """The sets that pass all rules, and how many pass each."""
    passed: Counter[str] = Counter()
    taken = []
    for seed in range(count):
        verdict = training(kind, seed, num_options=num_options[seed % len(num_options)])
        passed.update(rule.name for rule in verdict.rules if rule.passed)
        if verdict.is_recommended:
            taken.append(seed)
    return taken, passed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "count", "num_options"),
    [
        ("random", 200, (2, 3, 4, 5)),
        ("letter", 60, (2, 3, 5)),
        ("text", 60, (2,)),
        ("unknown", 60, (3,)),
        ("groups", 60, (2, 3, 5)),
    ],
)
def test_sets_without_an_effect_rarely_pass(kind: Kind, count: int, num_options: tuple[int, ...]) -> None:
    taken, passed = shares(kind, count, num_options)
    print(f"{kind}: {len(taken)} of {count} pass all rules; each alone: {dict(passed)}")
    assert len(taken) <= 0.05 * count, (taken, passed)
    decisive = {"random": "over_chance", "letter": "over_chance", "groups": "gain"}.get(kind, "over_text")
    assert passed[decisive] <= 0.06 * count, passed


@pytest.mark.slow
@pytest.mark.parametrize("num_options", [2, 3, 4, 5])
@pytest.mark.parametrize("belief", [0.0, 0.5, 1.0])
def test_a_gain_of_twenty_points_is_found(num_options: int, belief: float) -> None:
    """On 160 items, whether the model guesses on all of them, on half or on none."""
    found = sum(planted(seed, num_options, 0.2, belief=belief).is_recommended for seed in range(60))
    assert found >= 54, found


Draw = Callable[[np.random.Generator, int], tuple[np.ndarray[tuple[int], np.dtype[np.float64]], float]]

CHANGES: dict[str, Draw] = {
    "few rise": lambda chance, count: (chance.choice([0.5, 0.0], count, p=[0.1125, 0.8875]), 0.05625),
    "one in thirty": lambda chance, count: (chance.choice([1.0, 0.0], count, p=[0.03, 0.97]), 0.03),
    "most rise": lambda chance, count: (chance.choice([1.0, 0.0], count, p=[0.97, 0.03]), 0.97),
    "both ways": lambda chance, count: (chance.choice([1.0, 0.0, -1.0], count, p=[0.3, 0.5, 0.2]), 0.1),
}


@pytest.mark.slow
@pytest.mark.parametrize("count", [8, 40])
@pytest.mark.parametrize("name", CHANGES)
def test_the_interval_of_a_gain_covers_the_truth(name: str, count: int) -> None:
    chance = np.random.default_rng(7)
    covered = 0
    for _ in range(1000):
        changes, truth = CHANGES[name](chance, count)
        found = paired_test((1 - changes) / 2, (1 - changes) / 2 + changes / 2)
        covered += found.low <= truth / 2 <= found.high
    assert covered >= 930, covered


@pytest.mark.slow
@pytest.mark.parametrize(("num_options", "share"), [(1, 0.2), (2, 0.5), (3, 0.05), (4, 0.9)])
def test_the_interval_of_an_accuracy_covers_the_truth(num_options: int, share: float) -> None:
    chance = np.random.default_rng(8)
    covered = 0
    for _ in range(1000):
        found = accuracy_of(chance.binomial(num_options, share, 8) / num_options)
        covered += found.low <= share <= found.high
    assert covered >= 930, covered


@pytest.mark.slow
def test_seeds_that_share_items_are_allowed_for() -> None:
    """Ten tests on 40 of the same 200 items, of a vector without effect: Student's p is below 0.05 far too often."""
    chance = np.random.default_rng(9)
    student = corrected = 0
    for _ in range(400):
        pool = chance.choice([-1.0, 0.0, 1.0], 200, p=[0.15, 0.7, 0.15])
        tests = [chance.choice(pool, 40, replace=False) for _ in range(10)]
        gains = [float(test.mean()) for test in tests]
        errors = [paired_test((1 - test) / 2, (1 + test) / 2).standard_error for test in tests]
        plain, allowing = seeds_test(gains), corrected_seeds_test(gains, errors, 1 / 3)
        assert plain is not None
        assert allowing is not None
        student += plain.p is not None and plain.p < 0.05
        corrected += allowing.p is not None and allowing.p < 0.05
    print(f"seeds: Student's p < 0.05 in {student} of 400, the corrected one in {corrected}")
    assert student > 60
    assert corrected <= 20
