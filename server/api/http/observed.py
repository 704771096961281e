"""Collects facts about a request for its log line and its trace: counts and names, never text or keys.

There is one record per request, found through the context of its task.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Observed:
    """Filled while the request is processed. `model` is empty if nothing was generated."""

    model: str = ""
    vectors: list[str] = field(default_factory=list)
    num_prompt_tokens: int = 0
    num_generated_tokens: int = 0
    finish_reasons: list[str] = field(default_factory=list)
    first_token_seconds: float | None = None

    def fields(self) -> dict[str, Any]:
        """The fields of the log line; empty if nothing was generated."""
        if not self.model:
            return {}
        shown = {
            "model": self.model,
            "prompt_tokens": self.num_prompt_tokens,
            "completion_tokens": self.num_generated_tokens,
            "finish_reasons": self.finish_reasons,
            "vectors": self.vectors,
        }
        if self.first_token_seconds is not None:
            shown["first_token_seconds"] = round(self.first_token_seconds, 6)
        return shown


_current: ContextVar[Observed | None] = ContextVar("observed", default=None)


def observe() -> Observed:
    """Make a new record for the request whose task calls this."""
    observed = Observed()
    _current.set(observed)
    return observed


def observed() -> Observed:
    """The record of the current request; outside of requests, one that is never read."""
    return _current.get() or Observed()
