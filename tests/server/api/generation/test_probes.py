"""Probe scores over HTTP with OpenAI's SDK: one a token, as a plain hook reads them, streamed and not.

The model repeats what it is told, so that answers have reasoning, calls and structure.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from server.demo.documents import CHAT_TEMPLATE
from tests.reference import Steer, scores
from tests.server.api.generation.dictating import serving_chats
from tests.server.api.serving import LAYERS, MODEL, Server, direction, tiny_module, vector

TEMPLATE = CHAT_TEMPLATE + "{# <think></think> #}"
CALL = '<tool_call>\n{"name": "f", "arguments": {"a": [1]}}\n</tool_call>'
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
JSON = {"type": "json_schema", "json_schema": {"name": "j", "schema": {"enum": [{"a": 1}, {"b": 22}]}}}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("Grüße!", {}),
    "several answers": ("Good day.", {"n": 2}),
    "reasoning": ("<think>Hm.</think> Yes.", {}),
    "a call": (f"Well.{CALL} So.", {"tools": TOOLS}),
    "structured": ('{"b": 22}', {"response_format": JSON}),
    "a stop string": ("One. Two. Three.", {"stop": ["Two"]}),
}
CALM = Steer(direction(2), 1)
STEERING = [{"vector": "calm", "scale": 0.7, "parts": ["reasoning", "content", "structured", "tool_calls"]}]
STEERED = Steer(direction(2), 1, scale=0.7)
PROBES = [
    {"vector": "calm", "threshold": 0.05},
    {"vector": "calm", "before": True, "positions": "all", "name": "unsteered"},
    {"vector": "bold", "layers": "0-1", "positions": "prompt"},
    {"vector": "feeling"},
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A model that repeats what it is told."""
    with serving_chats(tmp_path_factory.mktemp("data"), TEMPLATE, num_layers=LAYERS) as running:
        running.store.put("calm", vector(1))
        running.store.put("bold", vector(2, 0, 1, 2))
        made = running.http.post(
            "/v1/steering/vectors",
            json={
                "name": "feeling", "directions": {"2": FEELING.direction.tolist()},
                "reads": {"2": direction(8, 0.3).tolist()},
                "biases": {"2": 0.1}, "activation": "sigmoid", "threshold": 0.8,
            },
        )  # fmt: skip
        assert made.status_code == 201
        yield running


FEELING = Steer(direction(7), 2, read=direction(8, 0.3), bias=0.1, activation="sigmoid")


def check(shown: dict[str, Any], prompt: list[int], said: list[int]) -> None:
    """Scores and summaries are those of one slow pass over prompt and answer."""
    wanted: dict[str, tuple[Steer, dict[str, Any], str, float]] = {
        "calm": (CALM, {}, "response", 0.05),
        "unsteered": (CALM, {"before": True}, "all", 0.0),
        "bold.0": (Steer(direction(2), 0), {}, "prompt", 0.0),
        "bold.1": (Steer(direction(3), 1), {}, "prompt", 0.0),
        "feeling": (FEELING, {}, "response", 0.8),
    }
    assert set(shown) == set(wanted)
    for name, (probe, options, positions, threshold) in wanted.items():
        found = scores(tiny_module(), [*prompt, *said], probe, [STEERED], len(prompt), **options)
        of_prompt, of_response = found[: len(prompt)], found[len(prompt) - 1 : -1]
        every = {"prompt": of_prompt, "response": of_response, "all": found[:-1]}[positions]
        told = shown[name]
        assert told["layer"] == probe.layer
        assert told["scores"] == pytest.approx([] if positions == "prompt" else of_response, abs=1e-4), name
        assert told.get("prompt_scores") == (None if positions == "response" else pytest.approx(of_prompt, abs=1e-4))
        assert told["threshold"] == threshold
        assert told["mean"] == pytest.approx(sum(every) / len(every), abs=1e-4)
        assert told["max"] == pytest.approx(max(every), abs=1e-4)
        assert told["above"] == sum(score > threshold for score in every)


def joined(chunks: list[dict[str, Any]]) -> dict[str, Any]:
    """What a stream's chunks tell together."""
    whole: dict[str, Any] = {}
    for chunk in chunks:
        for name, told in chunk.items():
            held = whole.setdefault(name, {"scores": []})
            held["scores"] += told["scores"]
            held.update({key: value for key, value in told.items() if key != "scores"})
    return whole


def assert_close(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Equal but for the rounding of what was computed in other company."""
    assert found.keys() == expected.keys()
    for name, told in found.items():
        assert told.keys() == expected[name].keys()
        for key, value in told.items():
            assert value == pytest.approx(expected[name][key], abs=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_chats_have_a_score_a_token(server: Server, name: str) -> None:
    text, options = CASES[name]
    sdk: Any = server.sdk
    asked: dict[str, Any] = {
        "model": MODEL, "messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": 300,
        "logprobs": True, **options, "extra_body": {"return_token_ids": True, "steering": STEERING, "probes": PROBES},
    }  # fmt: skip
    answer = sdk.chat.completions.create(**asked)
    prompt = answer.prompt_token_ids
    for choice in answer.choices:
        check(choice.probes, prompt, choice.token_ids)
        assert len(choice.probes["calm"]["scores"]) == len(choice.logprobs.content) == len(choice.token_ids)
    streamed: list[list[dict[str, Any]]] = [[] for _ in answer.choices]
    for chunk in sdk.chat.completions.create(**asked, stream=True):
        for choice in chunk.choices:
            ids = getattr(choice, "token_ids", [])
            assert (ids == [] and choice.finish_reason is None) or hasattr(choice, "probes")
            if hasattr(choice, "probes"):
                assert len(choice.probes["calm"]["scores"]) == len(ids)
                streamed[choice.index].append(choice.probes)
    for choice, chunks in zip(answer.choices, streamed, strict=True):
        assert_close(joined(chunks), choice.probes)


@pytest.mark.parametrize("name", ["plain", "reasoning", "a call", "structured"])
def test_responses_have_a_score_a_token(server: Server, name: str) -> None:
    text, options = CASES[name]
    sdk: Any = server.sdk
    asked: dict[str, Any] = {"model": MODEL, "input": text, "temperature": 0, "max_output_tokens": 300}
    if "tools" in options:
        asked["tools"] = [{"type": "function", **TOOLS[0]["function"], "strict": False}]  # type: ignore[dict-item]
    if "response_format" in options:
        asked["text"] = {"format": {"type": "json_schema", **JSON["json_schema"]}}  # type: ignore[dict-item]
    asked["extra_body"] = {"steering": STEERING, "probes": PROBES}
    answer = sdk.responses.create(**asked)
    chat = server.http.post(
        "/v1/chat/completions",
        json={
            "messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": 300, "steering": STEERING,
            "return_token_ids": True, **options,
        },
    ).json()  # fmt: skip
    check(answer.probes, chat["prompt_token_ids"], chat["choices"][0]["token_ids"])
    assert len(answer.probes["calm"]["scores"]) == answer.usage.output_tokens
    events = list(sdk.responses.create(**asked, stream=True))
    told = joined([event.probes for event in events if hasattr(event, "probes")])
    assert_close(events[-1].response.probes, answer.probes)
    num_streamed = len(told["calm"]["scores"])  # tokens without visible text at the end come only with the response
    assert 0 < num_streamed <= answer.usage.output_tokens
    shown = {name: {**each, "scores": each["scores"][:num_streamed]} for name, each in answer.probes.items()}
    assert_close(told, {name: {key: each[key] for key in told[name]} for name, each in shown.items()})


def test_completions_of_several_prompts_have_a_score_a_token(server: Server) -> None:
    sdk: Any = server.sdk
    asked: dict[str, Any] = {
        "model": MODEL, "prompt": [[72, 101, 108], [5, 6, 7, 8, 9]], "temperature": 0, "max_tokens": 5, "n": 2,
        "extra_body": {"return_token_ids": True, "steering": STEERING, "probes": PROBES},
    }  # fmt: skip
    answer = sdk.completions.create(**asked)
    assert len(answer.choices) == 4
    for choice in answer.choices:
        check(choice.probes, choice.prompt_token_ids, choice.token_ids)
    streamed: list[list[dict[str, Any]]] = [[] for _ in answer.choices]
    for chunk in sdk.completions.create(**asked, stream=True):
        for choice in chunk.choices:
            if hasattr(choice, "probes"):
                streamed[choice.index].append(choice.probes)
    for choice, chunks in zip(answer.choices, streamed, strict=True):
        assert_close(joined(chunks), choice.probes)
    body = {"prompt": [72, 101], "max_tokens": 0, "steering": STEERING, "probes": PROBES, "echo": True, "logprobs": 1}
    (choice,) = server.http.post("/v1/completions", json=body).json()["choices"]
    expected = scores(tiny_module(), [72, 101], CALM, [STEERED], 2, before=True)
    assert choice["probes"]["unsteered"]["prompt_scores"] == pytest.approx(expected, abs=1e-4)
    assert (choice["probes"]["calm"]["scores"], choice["probes"]["calm"]["mean"]) == ([], None)


def test_without_probes_nothing_is_told(server: Server) -> None:
    for probes in (None, list[Any]()):
        body = {"messages": [{"role": "user", "content": "Hi."}], "max_tokens": 3, "probes": probes}
        answer = server.http.post("/v1/chat/completions", json=body).json()
        assert "probes" not in answer["choices"][0]
        assert "probes" not in server.http.post("/v1/responses", json={"input": "Hi.", "probes": probes}).json()


@pytest.mark.parametrize(
    ("probes", "param", "code"),
    [
        ([{"vector": "nobody"}], "probes.0.vector", "vector_not_found"),
        ([{"vector": "calm"}, {"vector": "calm@ffffff"}], "probes.1.vector", "revision_not_found"),
        ([{"vector": "calm", "layers": [9]}], "probes.0.layers", "invalid_layers"),
        ([{"vector": "bold", "layers": [1, 1]}], "probes.0.layers", "invalid_layers"),
        ([{"vector": "calm"}, {"vector": "calm"}], "probes.1.name", "invalid_probes"),
        ([{"vector": "calm", "name": ""}], "probes.0.name", None),
        ([{"vector": "calm", "positions": "some"}], "probes.0.positions", None),
        ([{"vector": "calm", "scale": 1}], "probes.0.scale", None),
        ([{"vector": "bold", "name": str(number)} for number in range(65)], "probes", None),
        ({"vector": "calm"}, "probes", None),
    ],
)
def test_what_cannot_be_read_is_refused(server: Server, probes: Any, param: str, code: str | None) -> None:
    refused = server.http.post("/v1/completions", json={"prompt": [1], "probes": probes})
    error = refused.json()["error"]
    assert (refused.status_code in (400, 404), error["param"]) == (True, param)
    assert code is None or error["code"] == code


def test_too_many_scores_are_refused(server: Server) -> None:
    body = {"prompt": [[1]] * 600, "max_tokens": 100, "probes": [{"vector": "calm", "name": str(n)} for n in range(8)]}
    refused: httpx.Response = server.http.post("/v1/completions", json=body)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "probes")


def test_a_stored_response_keeps_its_scores(server: Server) -> None:
    asked = {"input": "Hello.", "store": True, "temperature": 0, "probes": PROBES}
    made = server.http.post("/v1/responses", json=asked)
    if made.status_code == 200:
        kept = server.http.get(f"/v1/responses/{made.json()['id']}").json()
        assert kept["probes"] == made.json()["probes"]
    else:
        assert json.loads(made.text)["error"]["param"] == "store"
