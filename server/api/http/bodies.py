"""Request bodies: read within a limit, parsed as JSON, validated, and refused by the name of the first wrong field.

What a wrong body costs is bounded: no object has more than so many members, and large bodies are parsed off the event
loop (the models leave their long lists at the first wrong item).
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator, Sequence
from typing import Any, TypeVar

from anyio.to_thread import run_sync
from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from server.api.http.description import knows_query, reads_body
from server.errors import ApiError, InvalidRequest, PayloadTooLarge

Model = TypeVar("Model", bound=BaseModel)

MAX_JSON_BYTES = 16 << 20
"""The largest body of a request that brings no vector."""

MAX_MEMBERS = 10_000
"""The most members of one JSON object."""

_LARGE_BYTES = 256 << 10
_UNKNOWN = object()
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")
_OWN_CODES = frozenset({"unsupported_parameter", "invalid_layers", "invalid_type", "invalid_value"})


async def limited_stream(request: Request, limit: int) -> AsyncGenerator[bytes, None]:
    """The body's chunks; `PayloadTooLarge` before the first when its length is announced too high, else when it is."""
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > limit:
        raise _too_large(limit)
    num_bytes = 0
    async for chunk in request.stream():
        num_bytes += len(chunk)
        if num_bytes > limit:
            raise _too_large(limit)
        yield chunk


async def read_body(request: Request, limit: int) -> bytes:
    """The whole body, at most `limit` bytes."""
    return b"".join([chunk async for chunk in limited_stream(request, limit)])


async def read_model(request: Request, model: type[Model], limit: int) -> Model:
    """The body as `model`. Raises `InvalidRequest` naming the field, or `PayloadTooLarge`."""
    assert reads_body(request, model), "the route says that it reads something else"
    body = await read_body(request, limit)
    if len(body) < _LARGE_BYTES:
        return validated(model, parse_json(body))
    return await run_sync(lambda: validated(model, parse_json(body)))


def parse_json(body: bytes, param: str | None = None) -> dict[str, Any]:
    """`body` as a JSON object of finite numbers and valid Unicode; errors name `param`."""
    if not body.strip():
        raise InvalidRequest("the body is empty; it must be a JSON object", code="invalid_json", param=param)
    try:
        text = body.decode("utf-8")
        value = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_object)
        if _SURROGATE_ESCAPE.search(text):
            json.dumps(value, ensure_ascii=False).encode()  # half of a surrogate pair is no character
    except UnicodeError:
        raise InvalidRequest("the body is not valid UTF-8", code="invalid_json", param=param) from None
    except (ValueError, RecursionError) as error:
        says_why = isinstance(error, json.JSONDecodeError | _TooManyMembers)
        reason = str(error)[:200] if says_why else "too deep or no finite numbers"
        raise InvalidRequest(f"the body is not valid JSON: {reason}", code="invalid_json", param=param) from None
    if not isinstance(value, dict):
        raise InvalidRequest("the body must be a JSON object", code="invalid_json", param=param)
    return value


def validated(model: type[Model], data: dict[str, Any]) -> Model:
    """`data` as `model`. Raises `InvalidRequest` for its first wrong field."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise _first_wrong(error, data) from None


def refuse_unknown_query(request: Request, *known: str) -> None:
    """Raise unless every query parameter is `known` and there once."""
    assert knows_query(request, known), "the route takes parameters of which it does not speak"
    for name in request.query_params:
        if name not in known:
            raise InvalidRequest(f"{name[:60]}: unknown query parameter", code="unknown_parameter", param=name[:60])
        if len(request.query_params.getlist(name)) > 1:
            raise InvalidRequest(f"{name}: given more than once", code="invalid_value", param=name)


def _too_large(limit: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"the body is larger than the {limit} bytes that this server accepts here")


class _TooManyMembers(ValueError):
    pass


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > MAX_MEMBERS:
        raise _TooManyMembers(f"an object has more than {MAX_MEMBERS} members")
    return dict(pairs)


def _refuse_constant(name: str) -> None:
    raise ValueError(name)


def _path_of(location: Sequence[int | str], data: Any, *, is_missing: bool) -> list[str]:
    """The path as the client wrote it: without the tags by which pydantic tells the members of a union apart."""
    path: list[str] = []
    here = data
    for number, part in enumerate(location, 1):
        if isinstance(part, int):
            here = here[part] if isinstance(here, list) and part < len(here) else _UNKNOWN
        elif isinstance(here, dict) and part in here:
            here = here[part]
        elif here is not _UNKNOWN and not (is_missing and number == len(location)):
            continue
        path.append(str(part))
    return path


def _first_wrong(error: ValidationError, data: dict[str, Any]) -> ApiError:
    details = error.errors(include_url=False, include_input=False)[0]
    kind = details["type"]
    path = _path_of(details["loc"], data, is_missing=kind == "missing")
    if (at := details.get("ctx", {}).get("at")) is not None:
        path.append(str(at))
    param = ".".join(path)[:200]
    if kind == "extra_forbidden":
        return InvalidRequest(f"{param}: unknown parameter", code="unknown_parameter", param=param)
    if kind == "missing":
        return InvalidRequest(f"{param}: required and missing", code="missing_required_parameter", param=param)
    if kind in _OWN_CODES:
        code = kind
    else:
        code = "invalid_type" if kind.endswith("_type") or kind.startswith("model_") else "invalid_value"
    message = details["msg"]
    return InvalidRequest(f"{param}: {message[0].lower()}{message[1:]}", code=code, param=param)
