"""The description of a route, next to its code: its body, answers, errors and parameters.

`read_model` and `refuse_unknown_query` check every call against the description (`reads_body`, `knows_query`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from starlette.requests import Request

from server.errors import (
    ApiError,
    EngineFailure,
    InvalidRequest,
    NotFound,
    Overloaded,
    RateLimited,
    Unavailable,
    Unprocessable,
)

Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])
Location = Literal["path", "query", "header"]

JSON = "application/json"
BYTES = "application/octet-stream"
FORM = "multipart/form-data"
EVENTS = "text/event-stream"


GENERATION_ERRORS: tuple[type[ApiError], ...] = (
    InvalidRequest, NotFound, Unprocessable, Overloaded, RateLimited, EngineFailure, Unavailable,
)  # fmt: skip
"""The errors of every route that runs the model."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of a path, a query or a header; `schema` is JSON Schema. Path parameters are required.

    `style` is OpenAPI's, where it is not the default.
    """

    name: str
    description: str
    schema: Mapping[str, Any]
    place: Location = "query"
    style: Literal["deepObject"] | None = None


@dataclass(frozen=True, slots=True)
class Header:
    """A header of an answer, present in every answer of its kind if `is_always`."""

    name: str
    description: str
    schema: Mapping[str, Any]
    is_always: bool = True


@dataclass(frozen=True, slots=True)
class Success:
    """A successful answer. `content` is the type of a JSON body, or None where `media_type` is enough.

    For `EVENTS`, `content` is the type of each event's data.
    """

    content: Any
    description: str
    status: int = 200
    media_type: str = JSON
    headers: tuple[Header, ...] = ()


@dataclass(frozen=True, slots=True)
class RouteDescription:
    """The whole description of a route. `bodies`: the type of the body by media type; empty: it reads no body."""

    answers: tuple[Success, ...]
    bodies: Mapping[str, Any]
    errors: tuple[type[ApiError], ...]
    parameters: tuple[Parameter, ...]


def describe(
    *answers: Success,
    bodies: Mapping[str, Any] | None = None,
    errors: Sequence[type[ApiError]] = (),
    parameters: Sequence[Parameter] = (),
) -> Callable[[Endpoint], Endpoint]:
    """Describe the decorated route function; goes below the router's own decorator.

    `errors` are the route's own ones, without those that every route of its kind has.
    """

    def declare(endpoint: Endpoint) -> Endpoint:
        endpoint.__dict__["description"] = RouteDescription(answers, bodies or {}, tuple(errors), tuple(parameters))
        return endpoint

    return declare


def description_of(endpoint: object) -> RouteDescription | None:
    """The description of a route function, if it has one."""
    found = getattr(endpoint, "description", None)
    return found if isinstance(found, RouteDescription) else None


def reads_body(request: Request, model: object) -> bool:
    """True unless the description of the request's route has another body than `model`."""
    declared = description_of(request.scope.get("endpoint"))
    return declared is None or model in declared.bodies.values()


def knows_query(request: Request, names: Sequence[str]) -> bool:
    """True unless the description of the request's route lacks one of the query parameters `names`."""
    declared = description_of(request.scope.get("endpoint"))
    if declared is None:
        return True
    return {name.partition("[")[0] for name in names} <= {
        parameter.name for parameter in declared.parameters if parameter.place == "query"
    }
