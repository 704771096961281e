"""Log-probabilities of tokens as chats and responses show them. It does not know endpoints."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from server.api.generation.choices import finite
from server.api.generation.running import TokenEntry
from server.detokenizer import TokenTable


def shown_logprobs(entries: Iterable[TokenEntry], table: TokenTable) -> list[dict[str, Any]]:
    """One object a token, each with the likeliest tokens at its place."""
    return [
        _token(entry.logprobs.token_id, entry.logprobs.logprob, table)
        | {"top_logprobs": [_token(token_id, logprob, table) for token_id, logprob in entry.logprobs.top]}
        for entry in entries
    ]


def _token(token_id: int, logprob: float, table: TokenTable) -> dict[str, Any]:
    return {"token": table.name_of(token_id), "logprob": finite(logprob), "bytes": list(table.bytes_of(token_id))}
