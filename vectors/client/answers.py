"""The server's answers about vectors, as typed values. Anything else raises `UnexpectedAnswer`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, FiniteFloat, TypeAdapter, ValidationError

from vectors.client.errors import ClientError, UnexpectedAnswer, refused

_FILE = "application/octet-stream"

_Shape = TypeVar("_Shape")

_UnixSeconds = Annotated[int, Field(ge=0, lt=253_402_300_800)]  # a date up to the year 9999


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer: its status, its Content-Type and its whole body."""

    status: int
    content_type: str
    body: bytes


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """A past or current revision of a name. `created_at` in Unix seconds, `bytes` of the canonical file."""

    revision: str
    created_at: _UnixSeconds
    bytes: int


@dataclass(frozen=True, slots=True)
class RegisteredVector:
    """A revision of a vector in a server's registry, without its directions. Fields are named as on the wire.

    `id` is the name; `revision` the content's hash (64 hex digits); `created_at` in Unix seconds; `bytes` of the
    canonical file; `norms` the Euclidean norm of each layer's direction, `rank` the most directions at one layer;
    `history` every revision of the name, newest
    first, where a single vector was asked for (`get`), else None.
    """

    object: Literal["steering.vector"]
    id: str
    name: str
    revision: str
    created_at: _UnixSeconds
    bytes: int
    model: str | None
    hidden_size: int
    layers: tuple[int, ...]
    site: str
    operation: str
    positions: str | Mapping[str, str | int]
    parts: tuple[str, ...]
    default_scale: FiniteFloat
    norms: Mapping[int, FiniteFloat]
    description: str
    metadata: Mapping[str, Any]
    training: Mapping[str, Any] | None
    default_layers: str = "all"
    activation: str = "identity"
    min: FiniteFloat | None = None
    max: FiniteFloat | None = None
    threshold: FiniteFloat | None = None
    rank: int = 1
    has_read_directions: bool = False
    max_scale: FiniteFloat | None = None
    calibration: Mapping[str, Any] | None = None
    history: tuple[HistoryEntry, ...] | None = None


@dataclass(frozen=True, slots=True)
class DamagedVector:
    """A vector of a list whose files on the server are damaged; `error` says which. Fields as in `RegisteredVector`."""

    object: Literal["steering.vector.damaged"]
    id: str
    name: str
    revision: str | None
    created_at: _UnixSeconds | None
    error: str


@dataclass(frozen=True, slots=True)
class Listing:
    """One page of a list; the next one comes after `last_id`."""

    object: Literal["list"]
    data: tuple[RegisteredVector | DamagedVector, ...]
    last_id: str | None
    has_more: bool


@dataclass(frozen=True, slots=True)
class _Deleted:
    id: str
    object: Literal["steering.vector.deleted"]
    deleted: Literal[True]


@dataclass(frozen=True, slots=True)
class _Error:
    message: str
    code: str | None = None
    param: str | None = None


@dataclass(frozen=True, slots=True)
class _Envelope:
    error: _Error


_VECTOR = TypeAdapter(RegisteredVector)
_LISTING = TypeAdapter(Listing)
_DELETED = TypeAdapter(_Deleted)
_ENVELOPE = TypeAdapter(_Envelope)


def vector_in(answer: Answer) -> RegisteredVector:
    """The vector in an answer. Raises `UnexpectedAnswer`, as all of these do."""
    return _read(_VECTOR, answer)


def listing_in(answer: Answer) -> Listing:
    """The page of a list in an answer."""
    return _read(_LISTING, answer)


def check_deleted(answer: Answer) -> None:
    """Raise unless the answer says that a vector was deleted."""
    _read(_DELETED, answer)


def file_in(answer: Answer) -> bytes:
    """The file in an answer."""
    if answer.content_type != _FILE:
        raise UnexpectedAnswer
    return answer.body


def refusal_in(answer: Answer, shown: Callable[[str], str]) -> ClientError:
    """The error in an answer whose status is not 2xx; `shown` makes its texts safe to show."""
    try:
        error = _ENVELOPE.validate_json(answer.body, strict=True).error
    except ValidationError:
        return UnexpectedAnswer(answer.status)
    code, param = (None if text is None else shown(text) for text in (error.code, error.param))
    return refused(answer.status, shown(error.message), code, param)


def _read(shape: TypeAdapter[_Shape], answer: Answer) -> _Shape:
    try:
        return shape.validate_json(answer.body, strict=True)
    except ValidationError:
        raise UnexpectedAnswer from None
