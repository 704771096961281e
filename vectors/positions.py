"""Which tokens of a request `positions` covers.

The tokens fall into three **phases**; what is covered is constant within one:

    phase      positions (prompt of P tokens)   covered by
    PROMPT     0 … P-2                          `prompt`, `all`
    BOUNDARY   P-1                              `prompt`, `response`, `all`
    RESPONSE   P …                              `response`, `all`
"""

from __future__ import annotations

import enum
import functools
from dataclasses import dataclass
from typing import assert_never

from vectors.vocabulary import Positions


class Phase(enum.IntEnum):
    """Where a token is relative to its request's prompt; see the module's table."""

    PROMPT = 0
    BOUNDARY = 1
    RESPONSE = 2


@dataclass(frozen=True, slots=True)
class Coverage:
    """What a value of `positions` covers: the prompt, the response, or both."""

    prompt: bool
    response: bool

    def covers_as_prompt(self, phase: Phase) -> bool:
        """True when tokens of `phase` are covered because they are the prompt's."""
        return self.prompt and phase is not Phase.RESPONSE

    def covers_as_response(self, phase: Phase) -> bool:
        """True when tokens of `phase` are covered because their logits choose the response."""
        return self.response and phase is not Phase.PROMPT

    def covers(self, phase: Phase) -> bool:
        """True when tokens of `phase` are covered."""
        return self.covers_as_prompt(phase) or self.covers_as_response(phase)


@functools.cache  # a search asks for every cell, phase and part
def coverage_of(positions: Positions) -> Coverage:
    """What `positions` covers."""
    match positions:
        case "prompt":
            return Coverage(prompt=True, response=False)
        case "response":
            return Coverage(prompt=False, response=True)
        case "all":
            return Coverage(prompt=True, response=True)
        case _:
            assert_never(positions)
