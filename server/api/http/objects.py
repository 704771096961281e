"""Objects that many routes share: OpenAI's error envelope, and a page of a list."""

from __future__ import annotations

from typing import ClassVar, Generic, Literal, Protocol, TypeVar

from typing_extensions import TypedDict


class TypedObject(Protocol):
    """A JSON object of a declared type: any `TypedDict`, but not a plain `dict`, whose keys nothing checks."""

    __required_keys__: ClassVar[frozenset[str]]

    def __getitem__(self, key: str, /) -> object: ...


class ErrorDetails(TypedDict):
    """The error: `message` for people, `code` for programs, `param` is the dotted path of the offending field."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorEnvelope(TypedDict):
    """The body of every error, and the last event of a failed stream."""

    error: ErrorDetails


class Identified(TypedDict):
    """An object that can be listed."""

    id: str


Listed = TypeVar("Listed", bound=Identified)


class PageFields(TypedDict):
    """The fields of a page except its data; `last_id` is the `after` of the next page."""

    object: Literal["list"]
    first_id: str | None
    last_id: str | None
    has_more: bool


class Page(PageFields, Generic[Listed]):
    """A page of any list. Each list also has its own type, because a generic type gives no schema."""

    data: list[Listed]
