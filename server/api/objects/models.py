"""Objects of `GET /v1/models`."""

from __future__ import annotations

from typing import Literal, NotRequired

from typing_extensions import TypedDict

from server.api.objects.common import UnixSeconds


class Model(TypedDict):
    """A name that requests may give as `model`; one with a `parent` is that model steered by a vector."""

    id: str
    object: Literal["model"]
    created: UnixSeconds
    owned_by: Literal["tiller"]
    max_model_len: int
    parent: NotRequired[str]


class ModelList(TypedDict):
    """All models."""

    object: Literal["list"]
    data: list[Model]
