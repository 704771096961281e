"""A judge model at any OpenAI-compatible endpoint: sends questions and returns the replies.

The key comes from the environment, goes to the given address only (redirects are not followed), and is in no message.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any, Self

import httpx

from server.cli.client.parallel import in_parallel
from server.cli.errors import USAGE, CommandFailed
from server.cli.training.generated_options import UNSET
from server.keys import JUDGE_VARIABLE
from vectors.client.clients import Server
from vectors.client.errors import InvalidConnection
from vectors.training.progress import Progress, Report

MAX_REPLY_BYTES = 1 << 20
NUM_ATTEMPTS = 5
LONGEST_PAUSE = 30.0
"""Seconds before another attempt, at most, whatever the endpoint asks for."""

_TIMEOUT = httpx.Timeout(10.0, read=300.0)
_TRIAL = "Reply with the word yes."

_PASSING = (408, 429, 500, 502, 503, 504)
"""Statuses after which the same question may succeed."""


class Judge:
    """The model `model` at `url`, which ends before `/chat/completions`; a bare host gets `/v1`. A context manager.

    `temperature` None sends none, which some models require. Raises `CommandFailed`.
    """

    def __init__(self, url: str, model: str, key: str | None, temperature: float | None) -> None:
        try:
            server = Server(url, key)
        except InvalidConnection as error:
            place = f"--judge {url}" if error.param == "base_url" else JUDGE_VARIABLE
            raise CommandFailed(f"{place}: {error}", USAGE) from None
        base = httpx.URL(url.rstrip("/"))
        self._url = str(base.copy_with(path="/v1") if base.path in ("", "/") else base)
        self._key = key
        self._http = httpx.Client(**server.settings(_TIMEOUT) | {"base_url": self._url})
        self._body: dict[str, Any] = {"model": model}
        if temperature is not None:
            self._body["temperature"] = temperature

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._http.close()

    def try_out(self) -> None:
        """Ask something small, so that a wrong address, key or model is known before it is needed.

        Raises `CommandFailed`.
        """
        self._ask(_TRIAL)

    def ask_all(self, questions: Sequence[str], report: Report) -> list[str]:
        """The reply to each question, several asked at once. Raises `CommandFailed`."""
        return in_parallel(
            self._ask, questions, lambda done: report(Progress("asking the judge", done, len(questions)))
        )

    def _ask(self, question: str) -> str:
        body = self._body | {"messages": [{"role": "user", "content": question}]}
        for attempt in range(1, NUM_ATTEMPTS + 1):
            try:
                with self._http.stream("POST", "chat/completions", json=body) as response:
                    content = self._read(response)
            except httpx.ConnectError:
                raise CommandFailed(f"no judge answers at {self._url}") from None
            except (httpx.HTTPError, UnicodeError) as error:
                if attempt == NUM_ATTEMPTS:
                    raise CommandFailed(f"the judge at {self._url} did not answer: {type(error).__name__}") from None
                time.sleep(_pause(attempt, None))  # a busy judge wants to be left alone for a while
                continue
            if response.is_success:
                return self._reply_in(content)
            if response.is_redirect:
                place = self._shown(response.headers.get("Location", "elsewhere"))
                raise CommandFailed(
                    f"the judge at {self._url} redirects (HTTP {response.status_code}) to {place}, where no key is "
                    "sent; if that is the judge, name its address with --judge"
                )
            if response.status_code not in _PASSING or attempt == NUM_ATTEMPTS:
                raise self._refusal(response.status_code, content)
            time.sleep(_pause(attempt, response.headers.get("Retry-After")))
        raise AssertionError("the last attempt returns or raises")

    def _read(self, response: httpx.Response) -> bytes:
        content = bytearray()
        for piece in response.iter_bytes():
            content += piece
            if len(content) > MAX_REPLY_BYTES:
                raise CommandFailed(f"the judge at {self._url} answered with more than 1 MiB")
        return bytes(content)

    def _reply_in(self, content: bytes) -> str:
        try:
            reply = json.loads(content)["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError, RecursionError):
            reply = 0
        if reply is not None and not isinstance(reply, str):
            raise CommandFailed(f"the answer from {self._url} is not a chat completion; is the address right?")
        return self._masked(reply or "")

    def _refusal(self, status: int, content: bytes) -> CommandFailed:
        try:
            message = json.loads(content)["error"]["message"]
        except (ValueError, LookupError, TypeError, RecursionError):
            message = None
        shown = self._shown(message) if isinstance(message, str) else "no reason given"
        way_out = f"; try --judge-temperature {UNSET}" if status == 400 and "temperature" in shown else ""
        return CommandFailed(f"the judge at {self._url} refused (HTTP {status}): {shown}{way_out}")

    def _shown(self, text: str) -> str:
        """What the endpoint says, as part of a message."""
        line = " ".join(text.split())
        return self._masked("".join(character for character in line if character.isprintable()))[:300]

    def _masked(self, text: str) -> str:
        return text if self._key is None else text.replace(self._key, "[key]")  # an answer may echo it


def _pause(attempt: int, asked: str | None) -> float:
    """Seconds before the attempt after number `attempt`: what the endpoint asks for, else doubling from one."""
    seconds = float(asked) if asked is not None and asked.isascii() and asked.isdigit() else 2.0 ** (attempt - 1)
    return min(seconds, LONGEST_PAUSE)
