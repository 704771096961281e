"""The demo model's corpus: seeded documents, and what share each kind has in it.

The mixture changes during training: the skill of finding an option and the bare facts come first, then what builds on
them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from server.demo.chat import chat_in_document, long_document, persona_document
from server.demo.documents import Document
from server.demo.quiz import (
    echo_document,
    fact_document,
    letter_document,
    marked_document,
    recall_document,
    statement_document,
)

MOMENTS = (0.0, 0.025, 0.05, 0.25)
"""The parts of training between which the shares move in straight lines; after the last they stay."""

MIXTURE: dict[str, tuple[Callable[[random.Random], Document], tuple[float, ...]]] = {
    "echo": (echo_document, (0.35, 0.3, 0.12, 0.04)),
    "marked": (marked_document, (0.3, 0.4, 0.22, 0.08)),
    "recall": (recall_document, (0.35, 0.2, 0.12, 0.06)),
    "letter": (letter_document, (0.0, 0.1, 0.4, 0.4)),
    "statement": (statement_document, (0.0, 0.0, 0.01, 0.03)),
    "fact": (fact_document, (0.0, 0.0, 0.05, 0.15)),
    "chat": (chat_in_document, (0.0, 0.0, 0.06, 0.18)),
    "persona": (persona_document, (0.0, 0.0, 0.02, 0.045)),
    "long": (long_document, (0.0, 0.0, 0.0, 0.008)),
}
"""Each kind of document: its writer, and its share at each of the moments."""


def shares_at(progress: float) -> list[float]:
    """The share of each kind at `progress` (0 to 1) of training."""
    after = next((n for n, moment in enumerate(MOMENTS) if moment > progress), len(MOMENTS))
    if after == len(MOMENTS):
        return [shares[-1] for _, shares in MIXTURE.values()]
    before = after - 1
    part = (progress - MOMENTS[before]) / (MOMENTS[after] - MOMENTS[before])
    return [shares[before] + (shares[after] - shares[before]) * part for _, shares in MIXTURE.values()]


def draw_document(rng: random.Random, progress: float) -> Document:
    """One document of the mixture as it is after `progress` (0 to 1) of training."""
    writers = [writer for writer, _ in MIXTURE.values()]
    return rng.choices(writers, shares_at(progress))[0](rng)


def document_stream(seed: int, num_documents: int) -> Iterator[Document]:
    """Yield `num_documents` documents over the whole of training, the same ones for the same seed."""
    rng = random.Random(seed)
    for index in range(num_documents):
        yield draw_document(rng, index / num_documents)


def text_of(document: Document) -> str:
    """The whole text of a document."""
    return "".join(span.text for span in document)
