"""Makes the exchanges of the OpenAPI document's examples again, with any server of the embedded model.

`python -m tests.server.api.about.exchanges` asks a real `tiller serve` and writes its answers to its `examples.json`.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx

from server.api.about.examples import FILE, Example, all_examples
from server.demo import VECTORS_DIR
from tests.server.api.serving import eventually
from tests.server.cli.running import ServerProcess

SHOWN_LINES = 12
"""How much of a plain text, such as all metrics, an example shows."""


def replayed(http: httpx.Client, examples: Iterable[Example]) -> Iterator[tuple[Example, httpx.Response]]:
    """Each example with the answer that it gets now; the ids of earlier answers stand for the recorded ones."""
    document = http.get("/openapi.json").json()
    places = {
        operation["operationId"]: (method, path)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }
    ids: dict[str, str] = {}
    for recorded in examples:
        example = _with_ids(recorded, ids)
        method, path = places[example.operation]
        answer = _send(http, method, path, example)
        if example.operation == "get_job" and recorded.name == "ended":
            answer = _when_ended(http, method, path, example)
        yield example, answer
        if isinstance(recorded.answer, dict) and example.answer_media_type == "application/json":
            _learn(ids, recorded.answer, answer.json())


def _learn(ids: dict[str, str], recorded: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    if isinstance(recorded.get("id"), str) and isinstance(now.get("id"), str):
        ids[recorded["id"]] = now["id"]


def _with_ids(example: Example, ids: Mapping[str, str]) -> Example:
    text = json.dumps([example.path, example.query, example.body])
    for recorded, now in ids.items():
        text = text.replace(json.dumps(recorded), json.dumps(now))
    path, query, body = json.loads(text)
    return dataclasses.replace(example, path=path, query=query, body=body)


def _send(http: httpx.Client, method: str, path: str, example: Example) -> httpx.Response:
    url = path.format(**example.path)
    sent: dict[str, Any] = {}
    if example.media_type == "application/json":
        sent["json"] = example.body
    elif example.media_type == "multipart/form-data":
        sent["files"] = {"file": ("pairs.jsonl", _content(example.body["file"]))}
        sent["data"] = {name: value for name, value in example.body.items() if name != "file"}
    elif example.media_type is not None:
        sent["content"] = _content(example.body)
    return http.request(method.upper(), url, params=dict(example.query), **sent)


def _content(text: str) -> bytes:
    """What curl sends: a text, or with `@` the file of that name, here one of the embedded model's vectors."""
    return (VECTORS_DIR / text[1:]).read_bytes() if text.startswith("@") else text.encode()


def _when_ended(http: httpx.Client, method: str, path: str, example: Example) -> httpx.Response:
    answers: list[httpx.Response] = []

    def has_ended() -> bool:
        answers.append(_send(http, method, path, example))
        return answers[-1].json()["status"] in ("succeeded", "failed", "cancelled")

    eventually(has_ended, within=120)
    return answers[-1]


def _recorded(example: Example, answer: httpx.Response) -> dict[str, Any]:
    media_type = answer.headers["content-type"].partition(";")[0]
    shown: Any = None
    if media_type == "application/json":
        shown = answer.json()
    elif media_type.startswith("text/"):
        lines = answer.text.splitlines(keepends=True)
        shown = answer.text if media_type == "text/event-stream" else "".join(lines[:SHOWN_LINES])
    entry = dataclasses.replace(example, status=answer.status_code, answer_media_type=media_type, answer=shown)
    defaults = {field.name: field.default for field in dataclasses.fields(Example)}
    asked = dataclasses.asdict(entry)
    return {name: value for name, value in asked.items() if value not in (defaults[name], {})}


def record() -> None:
    """Ask a real server, and write what it answers."""
    with tempfile.TemporaryDirectory() as folder, ServerProcess(Path(folder)) as process:
        url = process.wait_until_ready()
        with httpx.Client(base_url=url, timeout=120) as http:
            entries = [_recorded(example, answer) for example, answer in replayed(http, all_examples())]
    FILE.write_text(json.dumps(entries, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    record()
