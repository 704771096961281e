"""A classifier as a judge: a logistic regression on a bag of words, fitted to labelled texts.

Its accuracy on texts that it was not fitted to is part of the evidence: a classifier that is not better than always
saying the commonest label says nothing.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vectors.behaviour.answers import SIDES, AnswerPair, Assessment
from vectors.behaviour.changes import SIGNIFICANCE
from vectors.data.row import Row, shown
from vectors.data.rows import read_rows
from vectors.errors import InvalidData, MissingDependency
from vectors.training.significance import paired_test
from vectors.training.statistics import Accuracy, accuracy_of

MIN_TEXTS = 20
NUM_FOLDS = 5

_SEED = 0
_WORD = re.compile(r"\w+(?:['’]\w+)*")
_MIN_COUNT = 2  # texts that must have a word for it to be a feature
_LABELS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


@dataclass(frozen=True, slots=True)
class LabelledText:
    """A text, whether it shows the concept, and the row it comes from: texts of one row are never held out apart."""

    text: str
    label: bool
    line: int


@dataclass(frozen=True, slots=True)
class HeldOut:
    """How a classifier does on texts that it was not fitted to.

    `accuracy` is over all texts, each held out once; `commonest` is the accuracy of always saying the commonest label.
    `p`: one-sided, small if the first is above the second.
    """

    accuracy: Accuracy
    commonest: float
    p: float


class BagOfWords:
    """A logistic regression on which words a text has, with an L2 penalty (scikit-learn's default, C = 1).

    Features are the words that at least two of the texts have. Fitting is convex, so equal texts give equal weights.
    Raises `MissingDependency`.
    """

    def __init__(self, texts: Sequence[LabelledText]) -> None:
        try:
            from scipy.optimize import minimize
        except ImportError:
            raise MissingDependency("a classifier needs SciPy: pip install 'tiller[train]'") from None
        counts = Counter(word for text in texts for word in _words(text.text))
        known = sorted(word for word, count in counts.items() if count >= _MIN_COUNT)
        self._places = {word: place for place, word in enumerate(known)}
        features = self._features([text.text for text in texts])
        signs = np.where([text.label for text in texts], 1.0, -1.0)

        def loss(weights: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
            margins = signs * (features @ weights[1:] + weights[0])
            slopes = -signs / (1.0 + np.exp(np.clip(margins, -700, 700)))
            value = np.logaddexp(0.0, -margins).sum() + 0.5 * float(weights[1:] @ weights[1:])
            gradient = np.concatenate([[slopes.sum()], features.T @ slopes + weights[1:]])
            return float(value), gradient

        found = minimize(loss, np.zeros(len(known) + 1), jac=True, method="L-BFGS-B", options={"maxiter": 1000})
        self._weights: NDArray[np.float64] = found.x

    def shows(self, texts: Sequence[str]) -> list[bool]:
        """Whether each text shows the concept."""
        margins = self._features(texts) @ self._weights[1:] + self._weights[0]
        return [bool(margin > 0) for margin in margins]

    def _features(self, texts: Sequence[str]) -> Any:
        """A sparse matrix `[texts, words]` of 0 and 1."""
        from scipy.sparse import csr_matrix

        columns = [sorted({self._places[word] for word in _words(text) if word in self._places}) for text in texts]
        ends = np.cumsum([0, *map(len, columns)])
        flat = np.asarray([column for row in columns for column in row], dtype=np.int64)
        return csr_matrix((np.ones(flat.size), flat, ends), shape=(len(texts), len(self._places)))


def read_labelled_texts(content: bytes, name: str) -> tuple[LabelledText, ...]:
    """Texts of JSONL, a JSON list, CSV or Parquet, with and without the concept; `name` is for messages only.

    A row is `{"text", "label"}` with a label of true or false, 1 or 0, or `{"positive", "negative"}`, a text with the
    concept and one without. Raises `InvalidData` for fewer than `MIN_TEXTS` texts, or `NUM_FOLDS` of a label, too.
    """
    texts = tuple(text for row in read_rows(content, name) for text in _texts(row))
    positive = sum(text.label for text in texts)
    if len(texts) < MIN_TEXTS or min(positive, len(texts) - positive) < NUM_FOLDS:
        raise InvalidData(
            f"expected at least {MIN_TEXTS} texts, {NUM_FOLDS} of them with and {NUM_FOLDS} without the concept, "
            f"got {positive} with and {len(texts) - positive} without it",
            name,
        )
    return texts


def _texts(row: Row) -> tuple[LabelledText, ...]:
    if "positive" in row.fields and "negative" in row.fields:
        labelled = ((row.text("positive"), True), (row.text("negative"), False))
        return tuple(LabelledText(text, label, row.line) for text, label in labelled)
    if "text" not in row.fields or "label" not in row.fields:
        given = ", ".join(name[:40] for name in list(row.fields)[:12]) or "none"
        raise row.error(f"expected the fields text and label, or positive and negative, got {given}")
    label = _LABELS.get(str(row.fields["label"]).strip().lower())
    if label is None:
        raise row.error(f"label: expected true or false, 1 or 0, got {shown(row.fields['label'])}")
    return (LabelledText(row.text("text"), label, row.line),)


def hold_out(texts: Sequence[LabelledText]) -> HeldOut:
    """Cross-validation: each of `NUM_FOLDS` parts is classified after fitting to the others.

    Words are chosen from the others only, and texts of one row are in one part. Raises `MissingDependency`.
    """
    lines = sorted({text.line for text in texts})
    order = np.random.default_rng(_SEED).permutation(len(lines))
    part = {lines[index]: place % NUM_FOLDS for place, index in enumerate(order)}
    right = np.zeros(len(texts))
    most = 2 * sum(text.label for text in texts) >= len(texts)
    # of all texts: what is commonest among the others is rarer among those held out
    commonest = np.array([float(text.label == most) for text in texts])
    for fold in range(NUM_FOLDS):
        others = [text for text in texts if part[text.line] != fold]
        held = [number for number, text in enumerate(texts) if part[text.line] == fold]
        guesses = BagOfWords(others).shows([texts[number].text for number in held])
        for number, guess in zip(held, guesses, strict=True):
            right[number] = guess == texts[number].label
    return HeldOut(accuracy_of(right), float(commonest.mean()), paired_test(commonest, right).p)


def assess_by_classifier(texts: Sequence[LabelledText], name: str, pairs: Sequence[AnswerPair]) -> Assessment:
    """1 for each answer that a classifier fitted to `texts` takes to show the concept, else 0."""
    held_out = hold_out(texts)
    classifier = BagOfWords(texts)
    sides = {side: classifier.shows([pair.of(side).text for pair in pairs]) for side in SIDES}
    scores = [{side: {"concept": float(sides[side][number])} for side in SIDES} for number in range(len(pairs))]
    accuracy = held_out.accuracy
    worthless = None
    if accuracy.value <= held_out.commonest or held_out.p >= SIGNIFICANCE:
        worthless = (
            f"the classifier's held-out accuracy of {accuracy.value:.2f} is not significantly above always saying the "
            f"commonest label ({held_out.commonest:.2f}), so what it says is no evidence"
        )
    return Assessment(
        kind="classifier",
        by=f"by a classifier with held-out accuracy {accuracy.value:.2f}",
        headline="concept",
        lowest=0.0,
        highest=1.0,
        scores=scores,
        about={
            "method": "logistic regression on a bag of words",
            "texts": {"name": name, "with": sum(t.label for t in texts), "without": sum(not t.label for t in texts)},
            "held_out": {
                "method": f"{NUM_FOLDS}-fold cross-validation",
                "accuracy": accuracy.value,
                "ci95": [accuracy.low, accuracy.high],
                "commonest_label": held_out.commonest,
                "p": held_out.p,
            },
        },
        worthless=worthless,
    )


def _words(text: str) -> set[str]:
    return {match.replace("’", "'") for match in _WORD.findall(text.casefold())}
