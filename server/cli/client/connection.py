"""Clients of a running server for the terminal: failures become one-line messages.

`vectors.client` makes the connections and reads refusals.
"""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import httpx

from server.cli.errors import USAGE, CommandFailed
from server.keys import CLIENT_VARIABLE
from vectors.client.clients import Connection
from vectors.client.errors import InvalidConnection, UnexpectedAnswer
from vectors.errors import VectorsError

_TIMEOUT = httpx.Timeout(10.0, read=300.0)  # the first token may wait in the queue

_Client = TypeVar("_Client", bound=Connection)


def connect(kind: type[_Client], arguments: argparse.Namespace, environ: Mapping[str, str]) -> _Client:
    """The client of `--url`, with the key of `TILLER_API_KEY`. Raises `CommandFailed`."""
    try:
        return kind(arguments.url, environ.get(CLIENT_VARIABLE) or None, timeout=_TIMEOUT)
    except InvalidConnection as error:
        place = f"--url {arguments.url}" if error.param == "base_url" else CLIENT_VARIABLE
        raise CommandFailed(f"{place}: {error}", USAGE) from None


@contextlib.contextmanager
def readable_failures() -> Iterator[None]:
    """Turn what a client raises within the context into `CommandFailed`."""
    try:
        yield
    except VectorsError as error:
        raise CommandFailed(str(error)) from None


class ServerClient(Connection):
    """Calls other parts of a server than its registry of vectors; every failure is a `CommandFailed`."""

    def call(self, method: str, path: str, **request: Any) -> bytes:
        """The body of the answer to one request. Raises `CommandFailed`."""
        with readable_failures():
            return self._answer(method, path, **request).body

    def read(self, method: str, path: str, shape: Any, **request: Any) -> Any:
        """The JSON of the answer to one request, which must have `shape` (see `expect`)."""
        return expect(_parsed(self.call(method, path, **request)), shape)

    def events(self, path: str, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """The JSON objects of a streamed answer to `body`, until `[DONE]`; an error event is raised."""
        with (
            readable_failures(),
            self._server.typed_failures(),
            self._http.stream("POST", path, json=body) as response,
        ):
            if not response.is_success:
                response.read()
                raise self._server.refusal_of(response)
            for line in response.iter_lines():
                if not line.startswith("data:"):
                    continue
                data = line.removeprefix("data:").strip()
                if data == "[DONE]":
                    return
                event = expect(_parsed(data), {})
                if "error" in event:
                    raise CommandFailed(_message_of(event) or "the server reported an error")
                yield event
        raise CommandFailed("the answer ended before it was complete")


def _message_of(body: object) -> str | None:
    error = body.get("error") if isinstance(body, dict) else None
    message = error.get("message") if isinstance(error, dict) else None
    return message if isinstance(message, str) else None


def _parsed(data: str | bytes) -> Any:
    """The JSON value in `data`; None if it is not JSON."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def expect(answer: Any, shape: Any) -> Any:
    """`answer`, if it has `shape`: a type, a list of one shape, or a dict of them that other fields may join.

    A missing field counts as None. Raises `CommandFailed`.
    """
    if not _has_shape(answer, shape):
        raise not_understood()
    return answer


def not_understood() -> CommandFailed:
    """The failure for an answer that is not one of a tiller server."""
    return CommandFailed(str(UnexpectedAnswer()))


def _has_shape(value: Any, shape: Any) -> bool:
    if isinstance(shape, dict):
        return isinstance(value, dict) and all(_has_shape(value.get(name), part) for name, part in shape.items())
    if isinstance(shape, list):
        return isinstance(value, list) and all(_has_shape(part, shape[0]) for part in value)
    return isinstance(value, shape)
