"""What a chat or completion says beside its choices: id, time, model, and what else the request wants to know."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Self

from server.api.generation.wire import GenerationFields
from server.api.http.services import Services


@dataclass(frozen=True, slots=True)
class AnswerHead:
    """What all objects that answer one request have in common. `created` in Unix seconds."""

    response_id: str
    created: int
    model: str
    includes_usage: bool
    """Whether a stream ends with the usage; its other chunks then say that they have none."""
    shows_token_ids: bool

    @classmethod
    def of(cls, body: GenerationFields, response_id: str, services: Services) -> Self:
        """Of the answer to `body`, from now on."""
        model = body.model if body.model is not None else services.engine.info.model_id
        return cls(response_id, int(time.time()), model, body.includes_usage, bool(body.return_token_ids))
