"""OpenAI's official Node SDK; what it does is in `openai_node.mjs`. The package is installed once, by npm."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("openai_node.mjs")
DEADLINE = 120.0

Run = Callable[[str], Any]


@pytest.fixture(scope="session")
def run(base_url: str, node_folder: Path) -> Run:
    """Has the SDK do something against the server; what it found."""
    script = shutil.copy(SCRIPT, node_folder)

    def run_script(name: str) -> Any:
        command = ["node", script, base_url, name]
        done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=DEADLINE, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run_script


def is_trip(value: Any) -> bool:
    """True for what obeys the script's schema."""
    return value.keys() == {"city", "days"} and value["city"] in ("Paris", "Rome") and value["days"] in range(1, 10)


def test_models(run: Run) -> None:
    found = run("models")
    assert found["one"] == "tiller-demo"
    assert {"tiller-demo", "tiller-demo+honest", "tiller-demo+cheerful"} <= set(found["ids"])


def test_chats(run: Run) -> None:
    found = run("chat")
    assert found["whole"]
    assert found["whole"] == found["text"] == found["deltas"] == found["final"]
    assert len(set(found["usages"])) == 1


def test_steering_rides_along(run: Run) -> None:
    found = run("steering")
    plain, by_field, by_name = found["texts"]
    assert plain != by_field == by_name
    assert [[entry["vector"] for entry in echo] for echo in found["echoes"]] == [[], ["cheerful"], ["cheerful"]]


def test_its_loop_runs_tools(run: Run) -> None:
    found = run("tools")
    assert len(found["seen"]) >= 2
    assert all(map(is_trip, found["seen"]))
    assert found["results"] == [f"{given['days']} sunny days" for given in found["seen"]]
    assert found["roles"][:3] == ["user", "assistant", "tool"]


def test_streamed_calls(run: Run) -> None:
    found = run("streamed_tools")
    (call,) = found["calls"]
    assert (call["name"], found["events"], found["reason"]) == ("forecast", ["forecast"], "tool_calls")
    assert is_trip(json.loads(call["arguments"]))


def test_structured_answers(run: Run) -> None:
    assert is_trip(run("structured"))


def test_files(run: Run) -> None:
    assert run("files") == {"same": True, "listed": True, "bytes": len('{"text":"héé"}\n'.encode()), "deleted": True}


def test_responses(run: Run) -> None:
    found = run("responses")
    assert found["whole"]
    assert found["whole"] == found["text"] == found["final"]


def test_errors_are_the_sdks_own(run: Run) -> None:
    assert run("errors") == [
        {"kind": "NotFoundError", "status": 404, "code": "model_not_found", "param": "model"},
        {"kind": "NotFoundError", "status": 404, "code": "vector_not_found", "param": "steering.0.vector"},
        {"kind": "BadRequestError", "status": 400, "code": "invalid_value", "param": "temperature"},
    ]
