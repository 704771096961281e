"""Request bodies: read within a limit, parsed as JSON, and validated; errors name the first invalid field.

The cost of an invalid body is bounded: the members of an object are limited, large bodies are parsed off the event
loop, and long lists are only validated up to the first invalid item.
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
"""The largest body of a request that uploads no file."""

MAX_MEMBERS = 10_000
"""The most members of a JSON object."""

_LARGE_BYTES = 256 << 10
_UNKNOWN = object()
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")
_OWN_CODES = frozenset(
    {
        "unsupported_parameter",
        "missing_required_parameter",
        "invalid_layers",
        "invalid_positions",
        "invalid_type",
        "invalid_value",
    }
)


async def limited_stream(request: Request, limit: int) -> AsyncGenerator[bytes, None]:
    """The body's chunks. Raises `PayloadTooLarge` before the first if the announced length exceeds the limit."""
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
    assert reads_body(request, model), "the route's description has another body"
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.strip().lower() != "identity":
        raise InvalidRequest(
            f"Content-Encoding: expected a body that is not compressed, got {encoding[:40]!r}",
            code="invalid_header",
            param="Content-Encoding",
        )
    body = await read_body(request, limit)
    if len(body) < _LARGE_BYTES:
        return validated(model, parse_json(body))
    return await run_sync(lambda: validated(model, parse_json(body)))


def parse_json(body: bytes, param: str | None = None) -> dict[str, Any]:
    """`body` as a JSON object of finite numbers and valid Unicode; errors name `param`."""
    if not body.strip():
        raise InvalidRequest("expected a JSON object as the body, got an empty body", code="invalid_json", param=param)
    try:
        text = body.decode("utf-8-sig")
        value = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_object)
        if _SURROGATE_ESCAPE.search(text):
            json.dumps(value, ensure_ascii=False).encode()  # a lone surrogate is not a character
    except UnicodeError:
        raise InvalidRequest("the body is not valid UTF-8", code="invalid_json", param=param) from None
    except (ValueError, RecursionError) as error:
        says_why = isinstance(error, json.JSONDecodeError | _TooManyMembers)
        reason = str(error)[:200] if says_why else "nested too deeply or not finite"
        raise InvalidRequest(f"the body is not valid JSON: {reason}", code="invalid_json", param=param) from None
    if not isinstance(value, dict):
        raise InvalidRequest("expected a JSON object as the body", code="invalid_json", param=param)
    return value


def validated(model: type[Model], data: dict[str, Any]) -> Model:
    """`data` as `model`. Raises `InvalidRequest` for its first invalid field."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise _first_wrong(error, data) from None


def refuse_unknown_query(request: Request, *known: str) -> None:
    """Raise unless every query parameter is `known` and given once."""
    assert knows_query(request, known), "the route's description lacks a query parameter"
    for name in request.query_params:
        if name not in known:
            raise InvalidRequest(f"{name[:60]}: unknown query parameter", code="unknown_parameter", param=name[:60])
        if len(request.query_params.getlist(name)) > 1:
            raise InvalidRequest(f"{name}: given more than once", code="invalid_value", param=name)


def _too_large(limit: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"expected a body of at most {limit} bytes, got more")


class _TooManyMembers(ValueError):
    pass


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > MAX_MEMBERS:
        raise _TooManyMembers(f"an object has more than {MAX_MEMBERS} members")
    return dict(pairs)


def _refuse_constant(name: str) -> None:
    raise ValueError(name)


def _path_of(location: Sequence[int | str], data: Any, *, is_missing: bool) -> list[str]:
    """The path as the client wrote it: without the tags that pydantic adds for members of unions."""
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
        return InvalidRequest(f"{param}: missing required parameter", code="missing_required_parameter", param=param)
    if kind in _OWN_CODES:
        code = kind
    else:
        code = "invalid_type" if kind.endswith("_type") or kind.startswith("model_") else "invalid_value"
    message = details["msg"]
    return InvalidRequest(f"{param}: {message[0].lower()}{message[1:]}", code=code, param=param)
