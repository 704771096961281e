"""Log-probabilities of tokens in the form of chats and responses."""

from __future__ import annotations

from collections.abc import Iterable

from server.api.generation.choices import clip_logprob
from server.api.generation.objects import ChosenTokenLogprob, TokenLogprob
from server.api.generation.running import TokenEntry
from server.detokenizer import TokenTable


def shown_logprobs(entries: Iterable[TokenEntry], table: TokenTable) -> list[ChosenTokenLogprob]:
    """One object per token, each with the likeliest tokens at its place."""
    return [
        {
            **_shown(entry.logprobs.token_id, entry.logprobs.logprob, table),
            "top_logprobs": [_shown(token_id, logprob, table) for token_id, logprob in entry.logprobs.top],
        }
        for entry in entries
    ]


def _shown(token_id: int, logprob: float, table: TokenTable) -> TokenLogprob:
    return {"token": table.name_of(token_id), "logprob": clip_logprob(logprob), "bytes": list(table.bytes_of(token_id))}
