"""Gates over HTTP: the echo says what they are, and each choice how many tokens they let through."""

from __future__ import annotations

from typing import Any

import pytest

from tests.server.api.serving import MODEL, Server

GATED = {"vector": "calm", "scale": 0.5, "when": {"probe": "bold", "layer": 0, "above": 0.01}}
PROBE = {"vector": "bold", "layers": [0], "threshold": 0.01}
ASKED: dict[str, Any] = {
    "model": MODEL, "messages": [{"role": "user", "content": "Good day."}], "max_tokens": 12, "temperature": 0,
    "extra_body": {"steering": [{"vector": "bold", "scale": 0}, GATED], "probes": [PROBE]},
}  # fmt: skip


def check(gates: Any, probes: Any) -> None:
    """The gate reads what the probe does."""
    (gate,) = gates
    assert gate == {"entry": 1, "vector": "calm", "open": probes["bold"]["above"], "of": len(probes["bold"]["scores"])}
    assert 0 < gate["open"] < gate["of"]


def test_each_choice_says_what_its_gates_let_through(server: Server) -> None:
    sdk: Any = server.sdk
    answer = sdk.chat.completions.create(**ASKED, n=2)
    assert answer.steering[1]["when"] == {
        "probe": "bold", "revision": server.store.get("bold").revision, "site": "residual", "layer": 0, "above": 0.01,
        "sharpness": None, "latch": "token",
    }  # fmt: skip
    assert "when" not in answer.steering[0]
    for choice in answer.choices:
        check(choice.gates, choice.probes)
    chunks = list(sdk.chat.completions.create(**ASKED, stream=True))
    told = [chunk.choices[0].gates for chunk in chunks if hasattr(chunk.choices[0], "gates")]
    assert told == [answer.choices[0].gates]
    assert chunks[-1].choices[0].gates == told[0]
    text = {
        "model": MODEL,
        "prompt": "Good day.",
        "max_tokens": 12,
        "temperature": 0,
        "extra_body": ASKED["extra_body"],
    }
    whole = sdk.completions.create(**text)
    check(whole.choices[0].gates, whole.choices[0].probes)
    streamed = list(sdk.completions.create(**text, stream=True))
    assert streamed[-1].choices[0].gates == whole.choices[0].gates
    asked = {"model": MODEL, "input": "Good day.", "max_output_tokens": 12, "temperature": 0}
    response = sdk.responses.create(**asked, extra_body=ASKED["extra_body"])
    check(response.gates, response.probes)
    events = list(sdk.responses.create(**asked, extra_body=ASKED["extra_body"], stream=True))
    assert events[-1].response.gates == response.gates


def test_a_request_without_gates_is_told_of_none(server: Server) -> None:
    answer = server.http.post(
        "/v1/completions", json={"prompt": "Hi", "max_tokens": 2, "steering": [{"vector": "calm"}]}
    )
    assert "gates" not in answer.json()["choices"][0]
    assert "when" not in answer.json()["steering"][0]


def test_a_stop_string_ends_the_count(server: Server) -> None:
    body = {"prompt": "Good day.", "max_tokens": 12, "temperature": 0, "steering": [GATED], "probes": [PROBE]}
    whole = server.http.post("/v1/completions", json=body).json()["choices"][0]
    stopped = server.http.post("/v1/completions", json=body | {"stop": whole["text"][3:5]}).json()["choices"][0]
    assert stopped["gates"][0]["of"] == len(stopped["probes"]["bold"]["scores"]) < whole["gates"][0]["of"]


@pytest.mark.parametrize(
    ("when", "param", "words"),
    [
        ({"probe": "nobody", "above": 0}, "steering.0.when", "nobody"),
        ({"probe": "bold", "above": 0}, "steering.0.when", "several layers"),
        (
            {"probe": "bold", "above": 0, "layer": 2},
            "steering.0.when",
            "layer 2, which comes after",
        ),
        ({"probe": "bold", "above": 0, "layer": 9}, "steering.0.when", "outside the model"),
        ({"probe": "calm"}, "steering.0.when.above", "either above or below"),
        ({"probe": "calm", "above": 0, "below": 1}, "steering.0.when.above", "either above or below"),
        ({"probe": "calm", "above": 0, "sharpness": 0}, "steering.0.when.sharpness", "greater than 0"),
        ({"probe": "calm", "above": 0, "latch": "turn"}, "steering.0.when.latch", "rest"),
        ({"probe": "calm", "above": 0, "scale": 1}, "steering.0.when.scale", ""),
    ],
)
def test_a_gate_that_cannot_be_is_refused(server: Server, when: dict[str, Any], param: str, words: str) -> None:
    refused = server.http.post("/v1/completions", json={"prompt": [1], "steering": [{"vector": "calm", "when": when}]})
    error = refused.json()["error"]
    assert refused.status_code in (400, 404)
    assert error["param"] == param
    assert words in error["message"]
    if "comes after" in words:
        assert "layer 1, where the entry acts" in error["message"]
