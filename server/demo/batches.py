"""Packs documents into batches: rows in which no document sees another, and a weight for every target token.

Documents fill short rows; longer documents wait for a batch of full-length rows.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer

from server.demo.corpus import draw_document
from server.demo.tokens import MAX_POSITIONS

ROW_TOKENS = 192
DOCUMENTS_AT_ONCE = 64

NO_RECALL = -1
"""Marks a token that need not bring any word to mind."""

Encoded = tuple[list[int], list[float], list[int]]
"""A document's token ids, their weights, and the ids of the words to recall at each (or `NO_RECALL`)."""


@dataclass(frozen=True)
class Batch:
    """Rows of packed documents; `weights` belong to the token itself, as the target of the one before it.

    `recalls` holds the token id that the middle of the network is to know at a token, or `NO_RECALL`.
    """

    input_ids: torch.Tensor
    weights: torch.Tensor
    recalls: torch.Tensor
    documents: torch.Tensor
    position_ids: torch.Tensor

    @property
    def attention_mask(self) -> torch.Tensor:
        """Which position may look at which: earlier ones of its own document."""
        same = self.documents[:, None, :, None] == self.documents[:, None, None, :]
        return same & torch.ones(same.shape[-2:], dtype=torch.bool, device=same.device).tril()


def batch_stream(tokenizer: Tokenizer, seed: int, num_steps: int, batch_tokens: int) -> Iterator[Batch]:
    """Yield `num_steps` batches of `batch_tokens` positions, drawn from the mixture of their moment."""
    rng = random.Random(seed)
    short: list[Encoded] = []
    long: list[Encoded] = []
    long_rows = max(1, batch_tokens // MAX_POSITIONS)
    for step in range(num_steps):
        while sum(len(ids) for ids, *_ in short) < batch_tokens + 2 * ROW_TOKENS:
            for encoded in _encode(tokenizer, rng, step / num_steps):
                (short if len(encoded[0]) <= ROW_TOKENS else long).append(encoded)
        if sum(len(ids) for ids, *_ in long) > long_rows * MAX_POSITIONS:
            batch, long = _pack(long, long_rows, MAX_POSITIONS)
        else:
            batch, short = _pack(short, max(1, batch_tokens // ROW_TOKENS), ROW_TOKENS)
        yield batch


def _encode(tokenizer: Tokenizer, rng: random.Random, progress: float) -> list[Encoded]:
    """The next documents as token ids and weights, cut to the longest row."""
    documents = [draw_document(rng, progress) for _ in range(DOCUMENTS_AT_ONCE)]
    spans = [span for document in documents for span in document]
    encodings = iter(tokenizer.encode_batch_fast([span.text for span in spans]))
    result: list[Encoded] = []
    for document in documents:
        ids: list[int] = []
        weights: list[float] = []
        recalls: list[int] = []
        for span in document:
            piece = next(encodings).ids
            ids += piece
            weights += [span.weight] * len(piece)
            recalls += [NO_RECALL] * len(piece)
            if span.recall is not None:
                recalls[-1] = tokenizer.encode(f" {span.recall}").ids[0]
        weights[0] = 0.0
        result.append((ids[:MAX_POSITIONS], weights[:MAX_POSITIONS], recalls[:MAX_POSITIONS]))
    return result


def _pack(waiting: list[Encoded], num_rows: int, row_tokens: int) -> tuple[Batch, list[Encoded]]:
    """Fill rows with the documents in their order, each into the first row with room; return the rest."""
    shape = (num_rows, row_tokens)
    input_ids = torch.zeros(shape, dtype=torch.long)
    weights = torch.zeros(shape)
    recalls = torch.full(shape, NO_RECALL, dtype=torch.long)
    documents = torch.full(shape, -1, dtype=torch.long)
    position_ids = torch.zeros(shape, dtype=torch.long)
    used = [0] * num_rows
    left: list[Encoded] = []
    for number, encoded in enumerate(waiting):
        ids, token_weights, token_recalls = encoded
        row = next((row for row in range(num_rows) if used[row] + len(ids) <= row_tokens), None)
        if row is None:
            left.append(encoded)
            continue
        place = slice(used[row], used[row] + len(ids))
        input_ids[row, place] = torch.tensor(ids)
        weights[row, place] = torch.tensor(token_weights)
        recalls[row, place] = torch.tensor(token_recalls)
        documents[row, place] = number
        position_ids[row, place] = torch.arange(len(ids))
        used[row] += len(ids)
    return Batch(input_ids, weights, recalls, documents, position_ids), left
