"""Answers are judged by rules, classifiers and judges, and their side effects are counted: against slow loops."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence

import numpy as np
import pytest
from scipy import stats
from scipy.optimize import minimize

from vectors.behaviour.answers import Answer, AnswerPair, Decoding, seed_of_sample
from vectors.behaviour.changes import as_perplexity, change_of
from vectors.behaviour.classifier import BagOfWords, LabelledText, assess_by_classifier, hold_out, read_labelled_texts
from vectors.behaviour.judge import assess_by_judge, harmonic_mean, rating_in
from vectors.behaviour.prompts import OpenPrompt, read_prompts
from vectors.behaviour.report import behaviour_report
from vectors.behaviour.rule import assess_by_rule, expression_rule, read_words, words_rule
from vectors.behaviour.side_effects import is_refusal, repetition
from vectors.data.items import Message
from vectors.errors import InvalidData, InvalidMethod
from vectors.training.significance import paired_test


def answer(text: str, logprobs: Sequence[float] = (-0.5, -1.5)) -> Answer:
    return Answer(text, tuple(range(len(logprobs))), tuple(logprobs), False)


def pair(prompt: int, unsteered: str, steered: str, decoding: Decoding = "greedy") -> AnswerPair:
    return AnswerPair(
        prompt, decoding, None if decoding == "greedy" else 1, answer(unsteered), answer(steered, (-2.0,))
    )


PROMPTS = tuple(OpenPrompt((Message("user", f"Prompt {number}?"),), number + 1) for number in range(10))
PAIRS = tuple(pair(number, f"A grim day {number}.", f"A happy day {number}.") for number in range(10))


def test_prompts_are_read_from_any_of_the_fields() -> None:
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    rows = [{"prompt": "One?"}, {"messages": turns}, {"question": "Two?", "choices": ["a", "b"], "answer": 0}]
    read = read_prompts("\n".join(map(json.dumps, rows * 3)).encode(), "p.jsonl")
    assert [prompt.instruction for prompt in read[:3]] == ["One?", "system: Be brief.\nuser: Why?", "Two?"]
    assert [prompt.line for prompt in read] == list(range(1, 10))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"text": "x"}, "expected one of the fields prompt, messages, question, got text"),
        ({"prompt": " "}, "prompt is empty"),
        ({"messages": []}, "messages: expected a list of messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, r"messages\[0\].role: expected one of system, user"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "expected the user's turn last, got the assistant's"),
    ],
)
def test_a_wrong_prompt_is_named_by_its_line(row: dict[str, object], said: str) -> None:
    lines = [json.dumps({"prompt": "?"})] * 8 + [json.dumps(row)]
    with pytest.raises(InvalidData, match=f"p.jsonl, line 9: .*{said}"):
        read_prompts("\n".join(lines).encode(), "p.jsonl")
    with pytest.raises(InvalidData, match="at least 8 prompts, got 7"):
        read_prompts("\n".join(lines[:7]).encode(), "p.jsonl")


def test_words_are_found_whole_and_in_any_case() -> None:
    rule = words_rule(read_words("# tone\nglad\n\nC++\nvery well\n", "w.txt"))
    found = ["I am Glad.", "C++!", "It is very well."]
    missed = ["gladly", "C+", "very ill", "# tone"]
    assert [bool(rule.search(text)) for text in found + missed] == [True] * 3 + [False] * 4
    with pytest.raises(InvalidData, match="at least one word"):
        read_words("# none\n", "w.txt")
    with pytest.raises(InvalidMethod, match="expected a regular expression"):
        expression_rule("(")


def test_a_rule_scores_each_answer_by_whether_it_is_found() -> None:
    found = assess_by_rule(expression_rule("HAPPY"), "by a rule", PAIRS)
    assert found.scores == [{"unsteered": {"concept": 0.0}, "steered": {"concept": 1.0}}] * 10


@pytest.mark.parametrize(
    ("reply", "rating"),
    [
        ("It fits.\nRating: 2", 2),
        ("**Rating:** 1", 1),
        ("Rating: [[0]]", 0),
        ("2", 2),
        ("Rating: 2/2", 2),
        ("Rating: 1 out of 2", 1),
        ("<think>Rating: 0?</think>Rating: 2", 2),
        ("Rating: 2. I repeat, rating: 2", 2),
        ("Rating: 3", None),
        ("Rating: " + "1" * 5000, None),
        ("Rating: 1/" + "2" * 5000, None),
        ("Rating: -1", None),
        ("Rating: 1.5", None),
        ("Rating: 1-2", None),
        ("Rating: 1 or 2", None),
        ("Rating: 2/10", None),
        ("Rating: 1\nRating: 2", None),
        ("Rating: N", None),
        ("I would say two.", None),
        ("There are 2 concepts here.", None),
        ("", None),
    ],
)
def test_a_rating_is_read_only_where_it_is_clear(reply: str, rating: int | None) -> None:
    assert rating_in(reply, 0, 2) == rating


def test_a_judge_is_asked_blind_and_once_about_each_answer_and_criterion() -> None:
    pairs = [*PAIRS[:3], pair(3, "The same.", "The same.")]
    asked: list[str] = []

    def judge(questions: Sequence[str]) -> list[str]:
        asked.extend(questions)
        replies = []
        for question in questions:
            text = question.partition("<text>\n")[2].partition("\n</text>")[0]
            if "How fluent" in question:
                replies.append("Rating: 2")
            elif "<concept>" in question:
                assert "<concept>\njoy\n</concept>" in question
                replies.append("Rating: 2" if "happy" in text else "Rating: 0")
            else:
                assert f"Prompt {text[-2]}?" in question or text == "The same."
                replies.append("hard to say" if text == "A grim day 0." else "Rating: 1")
        return replies

    found = assess_by_judge("axbench", "joy", "someone", PROMPTS, pairs, judge, 5)
    assert len(asked) == len(set(asked)) == 3 * 7
    assert not any("steer" in question for question in asked)
    before = asked.copy()
    asked.clear()
    assess_by_judge("axbench", "joy", "someone", PROMPTS, pairs, judge, 6)
    assert sorted(asked) == sorted(before)
    assert asked != before
    first, second = found.scores[0], found.scores[1]
    assert first["unsteered"] == {"concept": 0, "instruction": None, "fluency": 2, "score": None}
    assert first["steered"] == {"concept": 2, "instruction": 1, "fluency": 2, "score": 3 / (1 / 2 + 1 / 1 + 1 / 2)}
    assert second["unsteered"]["score"] == 0
    none = {"concept": 0, "instruction": 0, "fluency": 0}
    assert found.about["unparsable"] == {"unsteered": none | {"instruction": 1}, "steered": none}
    assert found.replies is not None
    assert found.replies[0]["unsteered"]["instruction"] == "hard to say"


def test_caas_form_asks_one_question_of_one_to_ten() -> None:
    def judge(questions: Sequence[str]) -> list[str]:
        assert all("from 1 to 10" in question for question in questions)
        return ["Rating: 9" if "happy" in question else "Rating: 0" for question in questions]

    found = assess_by_judge("caa", "joy", "someone", PROMPTS, PAIRS, judge, 0)
    assert found.scores[0] == {"unsteered": {"concept": None}, "steered": {"concept": 9}}
    assert (found.headline, found.lowest, found.highest) == ("concept", 1, 10)


def test_the_harmonic_mean_is_zero_where_any_rating_is() -> None:
    assert harmonic_mean([2, 2, 2]) == 2
    assert harmonic_mean([2, 1, 1]) == pytest.approx(stats.hmean([2, 1, 1]))
    assert harmonic_mean([2, 0, 2]) == 0


def labelled(count: int, *, told: bool) -> list[LabelledText]:
    """Texts of random words, of which one tells the label, or none does."""
    chance = random.Random(3)
    texts = []
    for line in range(1, count + 1):
        label = line % 2 == 0
        words = [f"word{chance.randrange(30)}" for _ in range(6)]
        if told:
            words[chance.randrange(6)] = "merry" if label else "gloomy"
        texts.append(LabelledText(" ".join(words), label, line))
    return texts


def test_a_classifier_minimises_the_penalised_likelihood() -> None:
    texts = labelled(40, told=True)
    classifier = BagOfWords(texts)
    words = sorted({w for t in texts for w in t.text.split() if sum(w in o.text.split() for o in texts) >= 2})
    features = np.array([[1.0] + [float(word in text.text.split()) for word in words] for text in texts])
    signs = np.array([1.0 if text.label else -1.0 for text in texts])

    def loss(weights: np.ndarray) -> float:
        margins = signs * (features @ weights)
        return float(np.log1p(np.exp(-margins)).sum() + 0.5 * (weights[1:] ** 2).sum())

    best = minimize(loss, np.zeros(len(words) + 1), method="BFGS").x
    assert loss(classifier._weights) == pytest.approx(loss(best), abs=1e-4)
    assert classifier.shows(["a merry word1", "a gloomy word1"]) == [True, False]


def test_a_classifier_says_how_it_does_on_texts_that_it_has_not_seen() -> None:
    good = hold_out(labelled(60, told=True))
    assert good.accuracy.value > 0.9
    assert good.p < 0.001
    bad = hold_out(labelled(60, told=False))
    assert bad.accuracy.value < 0.75, "fitted texts would all be right"
    assert bad.commonest == 0.5
    pairs = [pair(n, "a gloomy word1", "a merry word2") for n in range(8)]
    found = assess_by_classifier(labelled(60, told=True), "t.jsonl", pairs)
    assert found.scores == [{"unsteered": {"concept": 0.0}, "steered": {"concept": 1.0}}] * 8
    assert found.by == f"by a classifier with held-out accuracy {good.accuracy.value:.2f}"
    worthless = assess_by_classifier(labelled(60, told=False), "t.jsonl", pairs)
    report = behaviour_report(PROMPTS, pairs, [worthless], {})
    assert not report.report["recommended"]
    assert "no evidence" in report.report["reason"]


def test_both_texts_of_a_row_are_held_out_together() -> None:
    """Each row has a word of its own: were one of its texts fitted to, the other would be taken for the same."""
    rows = [{"positive": f"own{n} {'a' * n}", "negative": f"own{n} {'b' * n}"} for n in range(1, 31)]
    texts = read_labelled_texts("\n".join(map(json.dumps, rows)).encode(), "t.jsonl")
    assert {text.line: 0 for text in texts}.keys() == set(range(1, 31))
    assert hold_out(texts).accuracy.value == 0.5


def test_labelled_texts_that_cannot_be_used_are_refused() -> None:
    rows = [{"text": f"text {n}", "label": n % 2} for n in range(20)]
    assert len(read_labelled_texts("\n".join(map(json.dumps, rows)).encode(), "t.jsonl")) == 20
    for wrong, said in (
        ([*rows, {"text": "x", "label": "maybe"}], "line 21: label: expected true or false, 1 or 0, got 'maybe'"),
        ([*rows, {"text": "x"}], "line 21: expected the fields text and label"),
        (rows[:10], "got 5 with and 5 without it"),
    ):
        with pytest.raises(InvalidData, match=said):
            read_labelled_texts("\n".join(map(json.dumps, wrong)).encode(), "t.jsonl")


@pytest.mark.parametrize(
    ("text", "refuses"),
    [
        ("I'm sorry, but I can't help with that.", True),
        ("I’m afraid I am unable to say.", True),
        ("I cannot provide that information.", True),
        ("As an AI, I don't have opinions.", True),
        ("That is against my guidelines.", True),
        ("I must decline.", True),
        ("I am sorry to talk about music.", False),
        ("Pff, how dreary! I can't wait for it to end.", False),
        ("Once upon a time. " * 30 + "I cannot help you.", False),
    ],
)
def test_the_rule_of_refusals(text: str, refuses: bool) -> None:
    assert is_refusal(text) == refuses


def test_repetition_is_the_share_of_runs_of_four_that_came_before() -> None:
    chance = random.Random(0)
    for _ in range(50):
        tokens = [chance.randrange(3) for _ in range(chance.randrange(30))]
        runs = [tokens[start : start + 4] for start in range(len(tokens) - 3)]
        again = sum(run in runs[:place] for place, run in enumerate(runs))
        assert repetition(tokens) == pytest.approx(again / len(runs) if runs else 0)


def test_a_prompt_is_the_unit_of_a_change_and_pairs_without_a_value_are_counted() -> None:
    pairs = [pair(n, "", "", decoding) for n in range(6) for decoding in ("greedy", "sampled")]
    values: list[tuple[float | None, float | None]] = [(float(n), float(n + n % 2 + 30)) for n in range(12)]
    values[5] = (None, 7.0)
    found = change_of(pairs, values)
    assert found is not None
    kept = {n: [values[2 * n + k] for k in range(2) if values[2 * n + k][0] is not None] for n in range(6)}
    means = np.array([np.mean(np.array(each, dtype=float), axis=0) for each in kept.values()])
    assert (found.num_prompts, found.num_left_out) == (6, 1)
    assert (found.unsteered, found.steered) == pytest.approx(tuple(means.mean(axis=0)))
    assert found.difference == pytest.approx((means[:, 1] - means[:, 0]).mean())
    assert found.low - 1e-9 <= found.difference <= found.high + 1e-9
    assert found.p == pytest.approx(2.0**-6)
    greedy = change_of(pairs, values, decoding="greedy")
    assert greedy is not None
    assert greedy.unsteered == pytest.approx(np.mean([before for before, _ in values[::2] if before is not None]))
    assert change_of(pairs, [(None, 1.0)] * 12) is None


def test_a_measure_with_bounds_has_the_interval_of_its_share_of_them() -> None:
    """Rare events alone would otherwise have an interval as if nothing else could happen."""
    shares = [(0.0, 0.2 if number < 2 else 0.0) for number in range(10)]
    found = change_of(PAIRS, [(1 + 9 * before, 1 + 9 * after) for before, after in shares], (1.0, 10.0))
    expected = paired_test([before for before, _ in shares], [after for _, after in shares])
    assert found is not None
    assert (found.low, found.high) == pytest.approx((9 * expected.low, 9 * expected.high))
    assert found.p == pytest.approx(expected.p)


def test_perplexities_and_their_ratio_come_from_nats_per_token() -> None:
    found = change_of(PAIRS, [(1.0, 2.0)] * 10)
    assert found is not None
    shown = as_perplexity(found)
    assert (shown["unsteered"], shown["steered"], shown["ratio"]) == pytest.approx((math.e, math.e**2, math.e))


def test_the_report_says_which_evidence_there_is_and_keeps_every_answer() -> None:
    judge = assess_by_judge("axbench", "joy", "someone", PROMPTS, PAIRS, lambda q: ["no idea"] * len(q), 0)
    rule = assess_by_rule(expression_rule("happy"), "by a rule (happy)", PAIRS)
    alone = behaviour_report(PROMPTS, PAIRS, [rule], {"model": "m"})
    assert alone.report["recommended"]
    assert alone.report["reason"].startswith("by a rule (happy): concept 0.0 % → 100.0 % of answers, one-sided p = ")
    costs = alone.report["side_effects"]
    assert costs["perplexity"]["unsteered"] == pytest.approx(math.exp(1.0))
    assert costs["perplexity"]["ratio"] == pytest.approx(math.e)
    assert [note for note in alone.report["notes"] if "perplexity of what is written rises to 2.72 times" in note]
    assert [note for note in alone.report["notes"] if "answers get shorter: 2 → 1 tokens" in note]

    both = behaviour_report(PROMPTS, PAIRS, [rule, judge], {})
    assert not both.report["recommended"]
    assert both.report["reason"].endswith("by the judge someone: no pair of answers was rated")
    assert "no clear rating 30 times for unsteered and 30 times for steered" in both.report["notes"][0]
    lines = [json.loads(line) for line in both.answers.decode().splitlines()]
    assert [line["line"] for line in lines] == list(range(1, 11))
    assert lines[0]["steered"]["text"] == "A happy day 0."
    assert lines[0]["steered"]["scores"]["rule"] == {"concept": 1.0}
    assert lines[0]["steered"]["scores"]["judge"]["score"] is None
    assert lines[0]["steered"]["judge_said"]["fluency"] == "no idea"
    json.dumps(both.report, allow_nan=False)


def test_a_fall_is_no_evidence_of_a_rise() -> None:
    rule = assess_by_rule(expression_rule("grim"), "by a rule", PAIRS)
    found = behaviour_report(PROMPTS, PAIRS, [rule], {})
    assert not found.report["recommended"]
    assert "no rise beyond chance" in found.report["reason"]


def test_every_sample_has_a_seed_of_its_own_that_the_seed_repeats() -> None:
    seeds = {seed_of_sample(0, prompt, sample) for prompt in range(30) for sample in range(1, 4)}
    assert len(seeds) == 90
    assert seed_of_sample(0, 4, 1) == seed_of_sample(0, 4, 1) != seed_of_sample(1, 4, 1)
