"""Objects about the server itself: models, tokens, health, readiness, version."""

from __future__ import annotations

from typing import Literal, NotRequired

from typing_extensions import TypedDict

from server.api.generation.objects import UnixSeconds


class Model(TypedDict):
    """An id that requests may use as `model`; one with a `parent` is that model steered by a vector."""

    id: str
    object: Literal["model"]
    created: UnixSeconds
    owned_by: Literal["tiller"]
    max_model_len: int
    parent: NotRequired[str]


class ModelList(TypedDict):
    """The list of models."""

    object: Literal["list"]
    data: list[Model]


class Tokens(TypedDict):
    """The tokens of a text or a chat. `token_strs` is their spelling in the vocabulary, with `return_token_strs`."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizedText(TypedDict):
    """The text of token ids."""

    prompt: str


class Health(TypedDict):
    """The process is alive."""

    status: Literal["ok"]


class Readiness(TypedDict):
    """The server accepts new work."""

    status: Literal["ready"]


class Version(TypedDict):
    """The server's version."""

    version: str
