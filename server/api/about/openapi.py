"""The OpenAPI 3.1 document, built from the routes and their descriptions, so that it cannot contradict them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fastapi.routing import APIRoute, APIRouter

from server import __version__
from server.api.about.examples import examples_of
from server.api.about.openapi_schemas import schemas_of
from server.api.http.auth import RoleCheck
from server.api.http.description import EVENTS, JSON, Header, Parameter, RouteDescription, Success, description_of
from server.api.http.objects import ErrorEnvelope
from server.errors import (
    ApiError,
    BodyTooSlow,
    Forbidden,
    InvalidRequest,
    Overloaded,
    PayloadTooLarge,
    RateLimited,
    TimedOut,
    Unauthorized,
)
from server.keys import Role

_DESCRIPTION = """\
Every error has OpenAI's envelope: `error.param` names the offending field, and `error.code` identifies the error.
Unknown fields and query parameters are refused, and so are fields of OpenAI's API that this server does not support.
Every response has the header `x-request-id`; a client can choose the id by sending this header.

A server without API keys accepts requests only from its own machine, without authorization.\
"""

_REQUEST_ID = Header(
    "x-request-id",
    "The request's id, also in the server's log.",
    {"type": "string", "pattern": "^[A-Za-z0-9._:-]{1,128}$"},
)
_ERROR_HEADERS: Mapping[type[ApiError], Header] = {
    Unauthorized: Header("www-authenticate", "The authorization scheme.", {"const": "Bearer"}),
    Overloaded: Header("retry-after", "Seconds to wait before a retry.", {"type": "string", "pattern": "^[0-9]+$"}),
    RateLimited: Header("retry-after", "Seconds to wait before a retry.", {"type": "string", "pattern": "^[0-9]+$"}),
}
_CONVERTER = re.compile(r"\{(\w+):\w+\}")


def document_of(routers: Iterable[APIRouter]) -> dict[str, Any]:
    """The document of all routes of `routers`; each route must have a description (`describe`)."""
    routes = [route for router in routers for route in router.routes if isinstance(route, APIRoute)]
    declared = [(route, _declaration_of(route)) for route in routes]
    schemas = _Types(operation for _, operation in declared)
    paths: dict[str, dict[str, Any]] = {}
    for route, operation in declared:
        path = _CONVERTER.sub(r"{\1}", route.path)
        paths.setdefault(path, {})[min(route.methods or ()).lower()] = _OperationObject(
            route, operation, schemas
        ).whole()
    return {
        "openapi": "3.1.0",
        "info": {"title": "tiller", "version": __version__, "description": _DESCRIPTION},
        "tags": [{"name": str(name)} for name in dict.fromkeys(tag for route in routes for tag in route.tags)],
        "paths": paths,
        "components": {
            "schemas": schemas.components,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer", "description": "An API key."}},
        },
    }


def _declaration_of(route: APIRoute) -> RouteDescription:
    operation = description_of(route.endpoint)
    assert operation is not None, f"{route.path} has no description"
    names = {parameter.name for parameter in operation.parameters if parameter.place == "path"}
    assert names == set(route.param_convertors), f"{route.path} does not describe the parameters of its path"
    return operation


class _Types:
    """The schemas of all types that operations use."""

    def __init__(self, operations: Iterable[RouteDescription]) -> None:
        types: list[Any] = [ErrorEnvelope]
        for operation in operations:
            types += [body for body in operation.bodies.values() if body is not bytes]
            types += [answer.content for answer in operation.answers if answer.content is not None]
        self._types = types
        self._schemas, self.components = schemas_of(types)

    def of(self, kind: Any) -> dict[str, Any]:
        """The schema of a type: a reference, or a union of references."""
        return self._schemas[next(number for number, each in enumerate(self._types) if each is kind)]


class _OperationObject:
    """One operation of the document."""

    def __init__(self, route: APIRoute, operation: RouteDescription, types: _Types) -> None:
        self._route = route
        self._operation = operation
        self._types = types
        self._examples = examples_of(route.name)
        checks = [dependency.call for dependency in route.dependant.dependencies]
        roles = [check.needed for check in checks if isinstance(check, RoleCheck)]
        self._role = None if not roles else Role.MANAGE if Role.MANAGE in roles else Role.USE

    def whole(self) -> dict[str, Any]:
        """The operation object."""
        summary, _, rest = (self._route.endpoint.__doc__ or "").strip().partition("\n")
        needs = "Requires a manage key." if self._role is Role.MANAGE else ""
        shown: dict[str, Any] = {
            "operationId": self._route.name,
            "tags": [str(tag) for tag in self._route.tags],
            "summary": summary.rstrip("."),
            "description": "\n\n".join(part for part in (" ".join(rest.split()), needs) if part),
            "parameters": [_parameter(each) for each in self._operation.parameters],
            "responses": self._answers() | self._errors(),
            "security": [] if self._role is None else [{"key": []}],
        }
        if self._operation.bodies:
            content = {media: self._body(media, body) for media, body in self._operation.bodies.items()}
            shown["requestBody"] = {"required": True, "content": content}
        return {name: value for name, value in shown.items() if value not in ("", []) or name == "security"}

    def _body(self, media_type: str, body: Any) -> dict[str, Any]:
        shown: dict[str, Any] = {} if body is bytes else {"schema": self._types.of(body)}
        examples = {
            example.name: {"value": example.body}
            for example in self._examples
            if example.body is not None and example.media_type == media_type
        }
        return shown | ({"examples": examples} if examples else {})

    def _answers(self) -> dict[str, Any]:
        answers: dict[str, Any] = {}
        for answer in self._operation.answers:
            shown = answers.setdefault(
                str(answer.status),
                {"description": answer.description, "headers": _headers((_REQUEST_ID, *answer.headers)), "content": {}},
            )
            shown["content"][answer.media_type] = self._content(answer)
        return answers

    def _content(self, answer: Success) -> dict[str, Any]:
        if answer.media_type == EVENTS:
            shown = {"schema": _event(self._types.of(answer.content))}
        elif answer.content is not None:
            shown = {"schema": self._types.of(answer.content)}
        else:
            shown = {"schema": {"type": "string"}} if answer.media_type.startswith("text/") else {}
        examples = {
            example.name: {"value": example.answer}
            for example in self._examples
            if (example.status, example.answer_media_type) == (answer.status, answer.media_type)
        }
        return shown | ({"examples": examples} if examples else {})

    def _errors(self) -> dict[str, Any]:
        by_status: dict[int, list[type[ApiError]]] = {}
        for error in self._error_types():
            by_status.setdefault(error.status, []).append(error)
        return {
            str(status): {
                "description": "\n\n".join(_description(error) for error in errors),
                "headers": _headers([_REQUEST_ID, *_headers_of(errors)]),
                "content": {JSON: self._content(Success(ErrorEnvelope, "", status=status))},
            }
            for status, errors in sorted(by_status.items())
        }

    def _error_types(self) -> list[type[ApiError]]:
        """The operation's own errors, and those that every operation of its kind may raise."""
        found: list[type[ApiError]] = list(self._operation.errors)
        if self._role is not None:
            found += [Unauthorized, Forbidden]
        if self._operation.bodies:
            found += [InvalidRequest, BodyTooSlow, PayloadTooLarge, TimedOut]
        if any(parameter.place != "path" for parameter in self._operation.parameters):
            found.append(InvalidRequest)
        found.append(ApiError)
        return list(dict.fromkeys(found))


def _event(data: dict[str, Any]) -> dict[str, Any]:
    """The schema of one event of a stream; JSON data is described as in OpenAPI 3.2."""
    return {
        "type": "object",
        "description": "One event. A stream of events without names ends with the data `[DONE]`.",
        "properties": {
            "event": {"type": "string"},
            "data": {
                "anyOf": [
                    {"const": "[DONE]"},
                    {"type": "string", "contentMediaType": JSON, "contentSchema": data},
                ]
            },
        },
        "required": ["data"],
    }


def _parameter(parameter: Parameter) -> dict[str, Any]:
    style = {} if parameter.style is None else {"style": parameter.style, "explode": True}
    return {
        "name": parameter.name,
        "in": parameter.place,
        "required": parameter.place == "path",
        "description": parameter.description,
        "schema": dict(parameter.schema),
        **style,
    }


def _headers(headers: Sequence[Header]) -> dict[str, Any]:
    return {
        header.name: {
            "description": header.description,
            "required": header.is_always,
            "schema": dict(header.schema),
        }
        for header in headers
    }


def _headers_of(errors: Sequence[type[ApiError]]) -> list[Header]:
    return [_ERROR_HEADERS[error] for error in errors if error in _ERROR_HEADERS]


def _description(error: type[ApiError]) -> str:
    if error is ApiError:
        return "The server failed; the details are in its log."
    text = (error.__doc__ or "").strip()
    return text if error.default_code is None else f"{text} (`{error.default_code}`)"
