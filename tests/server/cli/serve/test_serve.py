"""`tiller serve` from start to end: a real process, a real model, real requests, real signals."""

from __future__ import annotations

import itertools
import json
import os
import shlex
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from server.demo import MODEL_DIR, MODEL_NAME, VECTORS_DIR
from server.shipped import MARKER
from tests.server.cli.running import DEADLINE, ServerProcess, call_tiller, tiller


def pasted_curl(server: ServerProcess, key: str = "") -> httpx.Response:
    """What the curl in the banner gives, read as a shell would read it."""
    text = server.output[server.output.index("curl ") : server.output.index("Ctrl-C stops the server")]
    words = shlex.split(text.replace("$TILLER_API_KEY", key))
    assert words[0] == "curl"
    flagged = list(itertools.pairwise(words))
    headers = dict(value.split(": ", 1) for flag, value in flagged if flag == "-H")
    (body,) = [value for flag, value in flagged if flag == "-d"]
    return httpx.post(words[1], headers=headers, content=body, timeout=DEADLINE)


def completion(url: str, **body: object) -> httpx.Response:
    return httpx.post(f"{url}/v1/completions", json={"prompt": "Once upon a time", **body}, timeout=DEADLINE)


def long_stream(client: httpx.Client, url: str, n: int) -> Iterator[dict[str, object]]:
    """The events of many long stories."""
    body = {"prompt": "Once", "max_tokens": 480, "n": n, "ignore_eos": True, "stream": True}
    with client.stream("POST", f"{url}/v1/completions", json=body) as response:
        for line in response.iter_lines():
            if line.startswith("data: {"):
                yield json.loads(line.removeprefix("data: "))


def test_serve_from_start_to_ctrl_c(tiny_model: Path, tmp_path: Path, vector_file: Path) -> None:
    patient = ("--drain-timeout", str(DEADLINE))
    with (
        ServerProcess(tmp_path, tiny_model, *patient, preloaded=False) as server,
        httpx.Client(timeout=DEADLINE) as client,
    ):
        url = server.wait_until_ready()
        assert url.startswith("http://127.0.0.1:")
        assert "TinyStories-656K: LlamaForCausalLM, 656 thousand parameters, 2.5 MiB in float32" in server.output
        assert "2048 KV pages of 16 tokens = 32768 tokens" in server.output
        assert "none yet; add one with" in server.output
        assert "keys     none: only this machine" in server.output
        answer = pasted_curl(server)
        assert answer.status_code == 200, answer.text
        assert answer.json()["choices"][0]["text"]
        assert httpx.get(f"{url}/v1/models").json()["data"][0]["id"] == "TinyStories-656K"
        assert call_tiller("vectors", "put", "mood", vector_file, "--url", url).returncode == 0

        second = call_tiller("serve", tiny_model, "--port", "0", "--data-dir", tmp_path, "--log-level", "error")
        assert (second.returncode, second.stderr.count("\n")) == (1, 1), second.stderr
        assert "another process has the vector store" in second.stderr

        events = long_stream(client, url, n=4)
        reasons: list[object] = []
        next(events)
        server.signal(signal.SIGINT)  # what is under way finishes
        for event in events:
            choices = event["choices"]
            assert isinstance(choices, list)
            reasons += [choice["finish_reason"] for choice in choices if choice["finish_reason"]]
        assert reasons == ["length"] * 4
        assert server.wait() == 0, server.output
        assert "Traceback" not in server.output

    with ServerProcess(tmp_path, tiny_model, "--served-model-name", "it's mine") as server, httpx.Client() as client:
        url = server.wait_until_ready()
        assert "vectors  1 in the registry" in server.output
        assert f"API      described at {url}/docs" in server.output
        answer = pasted_curl(server)
        assert answer.status_code == 200, answer.text
        assert answer.json()["model"] == "it's mine"
        assert [entry["vector"] for entry in answer.json()["steering"]] == ["mood"]

        events = long_stream(client, url, n=128)
        next(events)
        server.signal(signal.SIGINT)
        server.wait_for_line("finishing running requests")
        server.signal(signal.SIGINT)  # the second stops at once
        assert server.wait() == 130, server.output
        events.close()  # type: ignore[attr-defined]


def test_keys_are_asked_for(tiny_model: Path, tmp_path: Path) -> None:
    environ = {"TILLER_API_KEYS": "use-it", "TILLER_MANAGE_KEYS": "change-it"}
    with ServerProcess(tmp_path, tiny_model, "--host", "0.0.0.0", environ=environ) as server:
        url = server.wait_until_ready()
        assert "keys     required" in server.output
        assert completion(url).status_code == 401
        assert pasted_curl(server, "wrong").status_code == 401
        assert pasted_curl(server, "use-it").status_code == 200
        shown = call_tiller("vectors", "rm", "x", "--url", url, environ={"TILLER_API_KEY": "use-it"})
        assert (shown.returncode, shown.stderr.count("\n")) == (1, 1)
        assert "HTTP 403" in shown.stderr
        shown = tiller("vectors", "rm", "x", "--url", url, environ={"TILLER_API_KEY": "change-it"})
        assert "HTTP 404" in shown.stderr
        server.signal(signal.SIGTERM)
        assert server.wait() == 0, server.output
        assert "use-it" not in server.output
        assert "change-it" not in server.output


def test_json_logs(tiny_model: Path, tmp_path: Path) -> None:
    with ServerProcess(tmp_path, tiny_model, "--log-json") as server:
        server.wait_for_line('"message": "ready"')
        url = json.loads(server.lines[-1])["url"]
        assert completion(url).status_code == 200
        assert server.stop() == 0
        entries = [json.loads(line) for line in server.lines]
        assert all({"time", "level", "logger", "message"} <= entry.keys() for entry in entries)
        (asked,) = [entry for entry in entries if entry["logger"] == "tiller.access"]
        assert (asked["method"], asked["path"], asked["status"]) == ("POST", "/v1/completions", 200)
        assert asked["request_id"] in asked["message"]
        assert (asked["completion_tokens"], asked["vectors"], asked["finish_reasons"]) == (16, [], ["length"])


def test_a_banner_that_nobody_reads_stops_no_server(tiny_model: Path, tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    buffered = {"PYTHONUNBUFFERED": ""}  # so that the end of the process has something left to flush
    with ServerProcess(tmp_path, tiny_model, environ=buffered, stdout=writing) as server:
        os.close(writing)
        url = server.wait_for_line(r"ready at (http://\S+) \(cannot write")[1]
        assert completion(url).status_code == 200
        assert server.stop() == 0, server.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--chat-template", "none.jinja"], "none.jinja"),
        (["--kv-cache-gib", "0.00001"], "increase --kv-cache-gib"),
        (["--adapter", "/none"], "adapter /none"),
    ],
)
def test_what_the_model_cannot_do_is_one_line(
    tiny_model: Path, tmp_path: Path, arguments: list[str], said: str
) -> None:
    options = ("--port", "0", "--data-dir", tmp_path, "--log-level", "error")
    shown = call_tiller("serve", tiny_model, *options, *arguments)
    assert shown.returncode == 1
    assert shown.stderr.count("\n") == 1, shown.stderr
    assert said in shown.stderr


@pytest.mark.skipif(not (MODEL_DIR / "model.safetensors").is_file(), reason="the embedded model is not built")
def test_the_embedded_model_needs_no_name(tmp_path: Path) -> None:
    shipped = sorted(file.stem for file in VECTORS_DIR.glob("*.safetensors"))
    with ServerProcess(tmp_path) as server:
        url = server.wait_until_ready()
        assert f"  model    {MODEL_NAME}: " in server.output
        assert "embedded demo: a toy" in server.output
        answer = pasted_curl(server)
        assert answer.status_code == 200, answer.text
        assert answer.json()["choices"][0]["message"]["content"]
        assert [entry["vector"] for entry in answer.json()["steering"]] == shipped[:1]
        for name in shipped:
            assert call_tiller("vectors", "rm", name, "--url", url).returncode == 0
        assert server.stop() == 0
    if shipped:
        assert sorted(json.loads((tmp_path / MARKER).read_text())) == shipped

    # The second start keeps to that; and its ready line is in the JSON log although the level is higher.
    with ServerProcess(tmp_path, "--log-json", "--log-level", "error") as server:
        server.wait_for_line('"message": "ready"')
        entry = json.loads(server.lines[-1])
        assert entry["level"] == "info"
        assert httpx.get(f"{entry['url']}/v1/steering/vectors").json()["data"] == []
        assert completion(entry["url"]).status_code == 200
        assert server.stop() == 0
        assert [json.loads(line)["message"] for line in server.lines] == ["ready"]
