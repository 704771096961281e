"""The fields of a chat or completion besides its choices: id, time, model, and what else the request wants."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Self

from server.api.generation.wire import GenerationFields
from server.api.http.services import Services


@dataclass(frozen=True, slots=True)
class AnswerHead:
    """The common fields of all objects that answer one request. `created` is in Unix seconds."""

    response_id: str
    created: int
    model: str
    includes_usage: bool
    """Whether a stream ends with the usage; its other chunks then have a null usage."""
    shows_token_ids: bool

    @classmethod
    def of(cls, body: GenerationFields, response_id: str, services: Services) -> Self:
        """The head of the answer to `body`, created now."""
        model = body.model if body.model is not None else services.engine.info.model_id
        return cls(response_id, int(time.time()), model, body.includes_usage, bool(body.return_token_ids))
