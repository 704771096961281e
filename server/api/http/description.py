"""What a route says of itself, next to the code that keeps to it: its body, answers, errors and parameters.

`read_model` and `refuse_unknown_query` hold every call to what its route says (`reads_body`, `knows_query`).
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
)

Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])
Location = Literal["path", "query", "header"]

JSON = "application/json"
BYTES = "application/octet-stream"
FORM = "multipart/form-data"
EVENTS = "text/event-stream"


GENERATION_ERRORS: tuple[type[ApiError], ...] = (
    InvalidRequest, NotFound, Overloaded, RateLimited, EngineFailure, Unavailable,
)  # fmt: skip
"""What may go wrong wherever the model runs for a request."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of a path, a query or a header; `schema` is JSON Schema. Those of paths are required.

    `style` as OpenAPI has it, where it is not the default.
    """

    name: str
    description: str
    schema: Mapping[str, Any]
    place: Location = "query"
    style: Literal["deepObject"] | None = None


@dataclass(frozen=True, slots=True)
class Header:
    """A header of an answer; every answer of its kind has it if `is_always`."""

    name: str
    description: str
    schema: Mapping[str, Any]
    is_always: bool = True


@dataclass(frozen=True, slots=True)
class Success:
    """What success looks like. `content`: a type of which the body is JSON, or None where `media_type` says enough.

    Of `EVENTS` the `content` is the type of each event's data.
    """

    content: Any
    description: str
    status: int = 200
    media_type: str = JSON
    headers: tuple[Header, ...] = ()


@dataclass(frozen=True, slots=True)
class RouteDescription:
    """All that a route says. `bodies`: by media type, what may be sent; without any, no body is read."""

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
    """Say so of the route function that it decorates, below the router's own decorator.

    `errors` are those of its own; the ones that every route of its kind has are known.
    """

    def declare(endpoint: Endpoint) -> Endpoint:
        endpoint.__dict__["description"] = RouteDescription(answers, bodies or {}, tuple(errors), tuple(parameters))
        return endpoint

    return declare


def description_of(endpoint: object) -> RouteDescription | None:
    """What a route function says of itself, if anything."""
    found = getattr(endpoint, "description", None)
    return found if isinstance(found, RouteDescription) else None


def reads_body(request: Request, model: object) -> bool:
    """True unless the request's route says that it reads another body than `model`."""
    declared = description_of(request.scope.get("endpoint"))
    return declared is None or model in declared.bodies.values()


def knows_query(request: Request, names: Sequence[str]) -> bool:
    """True unless the request's route takes a query parameter of which it does not speak."""
    declared = description_of(request.scope.get("endpoint"))
    if declared is None:
        return True
    return {name.partition("[")[0] for name in names} <= {
        parameter.name for parameter in declared.parameters if parameter.place == "query"
    }
