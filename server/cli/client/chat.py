"""`tiller chat`: a conversation in the terminal with a running server, steered as the user wishes.

`Conversation` (in `conversation.py`) keeps the turns and the steering; this module reads lines and shows answers as
they stream.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console

from server.cli.client.connection import ServerClient, connect, expect, readable_failures
from server.cli.client.conversation import Conversation, InvalidCommand, describe_entry
from server.cli.client.vectors import ranges, show_vectors
from server.cli.errors import CommandFailed
from vectors.client.clients import VectorClient

_PROMPT = "> "
_MODELS = {"data": [{"id": str}]}
_CHUNK = {"choices": [{"delta": {"content": str | None}}]}
_PLAN_ENTRY = {
    "vector": str,
    "revision": str,
    "scale": int | float,
    "operation": str,
    "layers": [int],
    "positions": str | dict,
}

HELP = """\
/steer NAME [SCALE] [layers=12-16,20] [positions=prompt|response|all] [parts=content,reasoning]
               [operation=add|ablate|clamp|cap|amplify] [min=…] [max=…]
               steer with a vector; several add up, repeating a name replaces its settings;
               positions may be a window as JSON without spaces, {"of":"prompt","last":4}
/steer         show the steering; /steer off ends it
/vectors       list the server's vectors
/system TEXT   set the system prompt (no TEXT: remove it) and start over
/reset         start over; the steering stays
/quit          quit (or Ctrl-D); Ctrl-C stops an answer"""


def chat(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Run the chat until the input ends; the exit code is 1 if a line of piped input failed."""
    sampling = {
        name: value
        for name, value in (
            ("temperature", arguments.temperature),
            ("max_tokens", arguments.max_tokens),
            ("seed", arguments.seed),
        )
        if value is not None
    }
    with connect(ServerClient, arguments, environ) as client, connect(VectorClient, arguments, environ) as registry:
        model = arguments.model or _only_model(client)
        return _Terminal(client, registry, model, sampling, Conversation(arguments.system)).run()


class _Terminal:
    def __init__(
        self,
        client: ServerClient,
        registry: VectorClient,
        model: str,
        sampling: Mapping[str, Any],
        conversation: Conversation,
    ) -> None:
        self._client = client
        self._registry = registry
        self._model = model
        self._sampling = sampling
        self._conversation = conversation
        self._is_interactive = sys.stdin.isatty()
        self._console = Console(highlight=False)

    def run(self) -> int:
        has_failed = False
        if self._is_interactive:
            self._note(f"chatting with {self._model}; /help lists the commands, Ctrl-D quits")
        for line in self._lines():
            if line == "/quit":
                break
            try:
                if line.startswith("/"):
                    self._obey(line)
                else:
                    self._answer(line)
            except (CommandFailed, InvalidCommand) as error:
                has_failed = True
                print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        return 1 if has_failed and not self._is_interactive else 0

    def _lines(self) -> Iterator[str]:
        if not self._is_interactive:
            yield from (line.strip() for line in sys.stdin if line.strip())
            return
        import readline  # noqa: F401 - gives `input` history and editing

        while True:
            try:
                line = input(_PROMPT).strip()
            except EOFError:
                print()
                return
            except KeyboardInterrupt:
                print()
                self._note("press Ctrl-D to quit")
                continue
            if line:
                yield line

    def _obey(self, line: str) -> None:
        command, _, rest = line.partition(" ")
        rest = rest.strip()
        if command == "/steer":
            self._conversation.steer(rest)
            self._show_steering()
        elif command == "/vectors":
            with readable_failures():
                show_vectors(list(self._registry.list()), self._console)
        elif command == "/system":
            self._conversation.begin(rest or None)
            self._note("new conversation")
        elif command == "/reset":
            self._conversation.begin(self._conversation.system)
            self._note("new conversation")
        elif command == "/help":
            self._note(HELP)
        else:
            raise InvalidCommand(f"unknown command {command}; /help lists the commands")

    def _answer(self, text: str) -> None:
        body = {
            "model": self._model,
            "messages": self._conversation.messages_with(text),
            "stream": True,
            **self._sampling,
        }
        if self._conversation.steering:
            body["steering"] = self._conversation.steering
        parts: list[str] = []
        plan: list[dict[str, Any]] = []
        try:
            for event in self._client.events("/v1/chat/completions", body):
                plan = expect(event.get("steering") or plan, [_PLAN_ENTRY])
                for choice in expect(event, _CHUNK)["choices"]:
                    part = choice["delta"].get("content") or ""
                    parts.append(part)
                    print(printable(part), end="", flush=True)
        except KeyboardInterrupt:
            print(" …", end="")
        finally:
            if parts:
                print(flush=True)
                self._conversation.add(text, "".join(parts))
        for entry in plan:
            self._note(f"steered by {describe_plan_entry(entry)}")

    def _show_steering(self) -> None:
        for entry in self._conversation.steering:
            self._note(f"steering: {describe_entry(entry)}")
        if not self._conversation.steering:
            self._note("not steered")

    def _note(self, text: str) -> None:
        self._console.print(text, style="dim", markup=False, soft_wrap=True)


def printable(text: str) -> str:
    """`text` without control characters, which could move the cursor or colour the terminal."""
    return "".join(character for character in text if character in "\n\t" or character.isprintable())


def describe_plan_entry(entry: Mapping[str, Any]) -> str:
    """One entry of the plan that the server echoed."""
    positions = entry["positions"]
    return (
        f"{entry['vector']}@{entry['revision'][:8]} × {entry['scale']:g}, {entry['operation']} at layers "
        f"{ranges(entry['layers'])}, {positions if isinstance(positions, str) else json.dumps(positions)}"
    )


def _only_model(client: ServerClient) -> str:
    models = client.read("GET", "/v1/models", _MODELS)["data"]
    if not models:
        raise CommandFailed("the server lists no models; choose one with --model")
    return str(models[0]["id"])
