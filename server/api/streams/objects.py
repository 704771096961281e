"""Object of `POST /v1/streams/{answer_id}/cancel`."""

from __future__ import annotations

from typing import Literal

from typing_extensions import TypedDict


class CancelledChoices(TypedDict):
    """The choices that were ended. Those that were complete before are not among them."""

    id: str
    object: Literal["stream.cancelled"]
    choices: list[int]
