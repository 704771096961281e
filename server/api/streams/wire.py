"""Wire model of `POST /v1/streams/{answer_id}/cancel`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from server.api.generation.wire import MAX_CHOICES
from server.api.http.wire import UNIQUE, WireModel


class CancelRequest(WireModel):
    """Body of `POST /v1/streams/{answer_id}/cancel`."""

    choices: (
        Annotated[
            list[Annotated[int, Field(ge=0)]],
            Field(min_length=1, max_length=MAX_CHOICES, json_schema_extra=UNIQUE),
        ]
        | None
    ) = None
    """The indices of the choices to end. Default: all."""
