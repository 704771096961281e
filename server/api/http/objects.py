"""Objects that every route may answer with: OpenAI's error envelope, and a page of a list."""

from __future__ import annotations

from typing import ClassVar, Generic, Literal, Protocol, TypeVar

from typing_extensions import TypedDict


class TypedObject(Protocol):
    """A JSON object of a declared type: any `TypedDict`, and no plain `dict`, whose keys nobody checks."""

    __required_keys__: ClassVar[frozenset[str]]

    def __getitem__(self, key: str, /) -> object: ...


class ErrorDetails(TypedDict):
    """What went wrong: `message` for people, `code` for programs, `param` the dotted path of the offending field."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorEnvelope(TypedDict):
    """Every error, and the last event of a stream that failed."""

    error: ErrorDetails


class Identified(TypedDict):
    """What can be listed."""

    id: str


Listed = TypeVar("Listed", bound=Identified)


class PageFields(TypedDict):
    """A page of a list, but for what is listed; `last_id` is the `after` of the next page."""

    object: Literal["list"]
    first_id: str | None
    last_id: str | None
    has_more: bool


class Page(PageFields, Generic[Listed]):
    """A page of any list. Each list has a type of its own beside it, for schemas cannot be made of a generic one."""

    data: list[Listed]
