"""The running server as seen from the terminal: one HTTP client whose failures are lines that people can read.

It knows OpenAI's error envelope and event streams; it does not know chats or vectors.
"""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Iterator, Mapping
from typing import Any, Self

import httpx

from server.cli.errors import USAGE, CommandFailed
from server.keys import CLIENT_VARIABLE, KeysRefused, checked_key

_TIMEOUT = httpx.Timeout(10.0, read=300.0)  # the first token of an answer may have to wait in the queue


class ServerClient:
    """Calls a server at `url`; every failure is a `CommandFailed`."""

    def __init__(self, url: str, api_key: str | None) -> None:
        self._url = url.rstrip("/").removesuffix("/v1")
        try:
            headers = {"Authorization": f"Bearer {checked_key(api_key, CLIENT_VARIABLE)}"} if api_key else {}
            if httpx.URL(self._url).scheme not in ("http", "https"):
                raise httpx.InvalidURL("it must begin with http:// or https://")
            self._client = httpx.Client(base_url=self._url, headers=headers, timeout=_TIMEOUT)
        except httpx.InvalidURL as error:
            raise CommandFailed(f"--url {url}: {error}", USAGE) from None
        except KeysRefused as error:
            raise CommandFailed(str(error), USAGE) from None

    @classmethod
    def from_arguments(cls, arguments: argparse.Namespace, environ: Mapping[str, str]) -> Self:
        """The client of `--url`, with the key of `TILLER_API_KEY`."""
        return cls(arguments.url, environ.get(CLIENT_VARIABLE))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._client.close()

    def call(self, method: str, path: str, **request: Any) -> httpx.Response:
        """One request; its response, when the server accepted it."""
        with self._readable_failures():
            response = self._client.request(method, path, **request)
        if not response.is_success:
            raise _refusal(response)
        return response

    def read(self, method: str, path: str, shape: Any, **request: Any) -> Any:
        """The JSON that one request is answered with, which must have `shape` (see `expect`)."""
        return expect(_parsed(self.call(method, path, **request).content), shape)

    def events(self, path: str, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """The JSON objects of a streamed answer to `body`, until `[DONE]`; an error event is raised."""
        with self._readable_failures(), self._client.stream("POST", path, json=body) as response:
            if not response.is_success:
                response.read()
                raise _refusal(response)
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

    @contextlib.contextmanager
    def _readable_failures(self) -> Iterator[None]:
        try:
            yield
        except (httpx.ConnectError, UnicodeError):  # the latter for a host that no name server can be asked for
            raise CommandFailed(f"no server answers at {self._url}: is 'tiller serve' running?") from None
        except httpx.TimeoutException:
            raise CommandFailed(f"{self._url} did not answer in time") from None
        except httpx.HTTPError as error:
            raise CommandFailed(f"{self._url}: {error or type(error).__name__}") from None


def _refusal(response: httpx.Response) -> CommandFailed:
    message = _message_of(_parsed(response.content))
    return CommandFailed(f"{message or response.reason_phrase} (HTTP {response.status_code})")


def _message_of(body: object) -> str | None:
    error = body.get("error") if isinstance(body, dict) else None
    message = error.get("message") if isinstance(error, dict) else None
    return message if isinstance(message, str) else None


def _parsed(data: str | bytes) -> Any:
    """What `data` says in JSON; None when it is not JSON."""
    try:
        return json.loads(data)
    except ValueError:
        return None


def expect(answer: Any, shape: Any) -> Any:
    """`answer`, if it has `shape`: a type, a list of one shape, or a dict of them that other fields may join.

    A field that is not there is None. Raises `CommandFailed`.
    """
    if not _has_shape(answer, shape):
        raise not_understood()
    return answer


def not_understood() -> CommandFailed:
    """The failure to show when the answer is no tiller server's."""
    return CommandFailed("the answer is not one of a tiller server; does something else listen at that address?")


def _has_shape(value: Any, shape: Any) -> bool:
    if isinstance(shape, dict):
        return isinstance(value, dict) and all(_has_shape(value.get(name), part) for name, part in shape.items())
    if isinstance(shape, list):
        return isinstance(value, list) and all(_has_shape(part, shape[0]) for part in value)
    return isinstance(value, shape)
