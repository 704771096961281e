"""What is around the choices of one chat or completion: id, time, model, and what the request wants to know besides.

It does not know what choices look like.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from server.api.generation.wire import GenerationFields
from server.api.http.services import Services


@dataclass(frozen=True, slots=True)
class Envelope:
    """Of all objects that answer one request."""

    response_id: str
    created: int
    model: str
    includes_usage: bool
    shows_token_ids: bool

    @classmethod
    def of(cls, body: GenerationFields, response_id: str, services: Services) -> Self:
        """Of the answer to `body`, from now on."""
        model = body.model if body.model is not None else services.engine.info.model_id
        return cls(response_id, int(time.time()), model, body.includes_usage, bool(body.return_token_ids))

    def around(self, kind: str, choices: Sequence[dict[str, Any]], **fields: Any) -> dict[str, Any]:
        """An object of that kind with those choices and further fields."""
        head = {"id": self.response_id, "object": kind, "created": self.created, "model": self.model}
        return head | {"choices": list(choices)} | fields

    def chunk(self, kind: str, choice: dict[str, Any]) -> dict[str, Any]:
        """A part of a stream that tells of one choice; where the stream ends with the usage, the others have none."""
        shown = {"logprobs": None, "finish_reason": None} | choice
        return self.around(kind, [shown], **({"usage": None} if self.includes_usage else {}))

    def ids(self, name: str, token_ids: Sequence[int]) -> dict[str, Any]:
        """Token ids as a field of that name, if the request wants them."""
        return {name: list(token_ids)} if self.shows_token_ids else {}
