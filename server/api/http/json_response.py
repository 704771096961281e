"""Turns every JSON answer into a response; large ones are made and written off the event loop."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping

from anyio.to_thread import run_sync
from starlette.responses import JSONResponse, Response

from server.api.http.objects import TypedObject

_MOST_ON_LOOP = 2000
_LEVELS = 6
_AT_ONCE = 64


def json_response(answer: TypedObject, *, status: int = 200, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """`answer` as the body of a response. A plain `dict` is a type error, because nothing checks its keys."""
    return JSONResponse(answer, status_code=status, headers=headers)


async def built_response(build: Callable[[], TypedObject], num_values: int) -> Response:
    """The response of the answer that `build` makes, of about `num_values` values.

    A large one is built and written on another thread, and a little at a time, so that no other thread waits for it.
    """
    if num_values <= _MOST_ON_LOOP:
        return json_response(build())
    return await run_sync(lambda: Response("".join(written(build())), media_type="application/json"))


def written(value: object, level: int = 0) -> Iterator[str]:
    """`value` as `JSONResponse` writes it, in pieces: the encoder lets no other thread run within one.

    Long lists are cut, but not that of the choices, each of which may be large.
    """
    if isinstance(value, list) and len(value) > _AT_ONCE and level > 1:
        for start in range(0, len(value), _AT_ONCE):
            yield ("," if start else "[") + _text(value[start : start + _AT_ONCE])[1:-1]
        yield "]"
    elif isinstance(value, list) and value and level < _LEVELS:
        for number, inner in enumerate(value):
            yield "," if number else "["
            yield from written(inner, level + 1)
        yield "]"
    elif isinstance(value, dict) and value and level < _LEVELS:
        for number, (name, inner) in enumerate(value.items()):
            yield f"{',' if number else '{'}{_text(name)}:"
            yield from written(inner, level + 1)
        yield "}"
    else:
        yield _text(value)


def _text(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
