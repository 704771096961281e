"""`variants`: each choice is what a request of its own would get, in one stream, and can be ended by itself."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.keys import ApiKeys
from tests.server.api.serving import Server, eventually, serving, vector

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
CALM, BOLD = [{"vector": "calm", "scale": 0.5}], [{"vector": "bold"}]
GATED = [{"vector": "calm", "when": {"probe": "bold", "layer": 0, "above": 0.01}}]
ELSE = [{"role": "user", "content": "Something else."}]
VARIANTS: list[dict[str, Any]] = [{"steering": []}, {}, {"steering": BOLD}, {"steering": GATED}, {"messages": ELSE}]
ASKED: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Good day."}], "max_tokens": 12, "seed": 7, "temperature": 1, "n": 2,
    "steering": CALM, "probes": [{"vector": "bold", "layers": [0]}], "logprobs": True, "return_token_ids": True,
}  # fmt: skip


def answer(server: Server, path: str, body: dict[str, Any]) -> dict[str, Any]:
    said = server.http.post(path, json=body)
    assert said.status_code == 200, said.text
    found: dict[str, Any] = said.json()
    return found


def check_same(found: Any, expected: Any) -> None:
    """Raise unless both are the same; sums over other batches may differ in their last digits."""
    if isinstance(expected, float):
        assert found == pytest.approx(expected, abs=1e-4)
    elif isinstance(expected, dict):
        assert set(found) == set(expected)
        for name, value in expected.items():
            check_same(found[name], value)
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            check_same(one, other)
    else:
        assert found == expected


def chunks_of(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        if line.startswith("data: {"):
            yield json.loads(line.removeprefix("data: "))


def streamed(server: Server, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    with server.http.stream("POST", path, json={**body, "stream": True}) as said:
        return list(chunks_of(said.iter_lines()))


def test_each_choice_is_that_of_a_request_of_its_own(server: Server) -> None:
    together = answer(server, CHAT, {**ASKED, "variants": VARIANTS})
    assert not {"steering", "prompt_token_ids"} & set(together)
    alone = [answer(server, CHAT, {**ASKED, **variant}) for variant in VARIANTS]
    expected = [
        {**choice, "steering": each["steering"], "prompt_token_ids": each["prompt_token_ids"]}
        for each in alone
        for choice in each["choices"]
    ]
    check_same(together["choices"], [{**choice, "index": index} for index, choice in enumerate(expected)])
    assert len({choice["message"]["content"] for choice in expected}) == len(expected)
    assert len(expected[6]["gates"]) == 1
    prompts = [alone[0]["usage"]["prompt_tokens"], alone[4]["usage"]["prompt_tokens"]]  # variants may share one
    assert together["usage"]["prompt_tokens"] == sum(prompts)
    assert together["usage"]["completion_tokens"] == sum(each["usage"]["completion_tokens"] for each in alone)


def test_a_stream_of_variants_says_what_the_whole_answer_says(server: Server) -> None:
    body = {**ASKED, "n": 1, "variants": VARIANTS}
    whole = answer(server, CHAT, body)["choices"]
    chunks = [each["choices"][0] for each in streamed(server, CHAT, body)]
    for number, choice in enumerate(whole):
        own = [each for each in chunks if each["index"] == number]
        assert own[0]["steering"] == choice["steering"]
        assert own[0]["prompt_token_ids"] == choice["prompt_token_ids"]
        assert not any("steering" in each for each in own[1:])
        assert "".join(each["delta"].get("content", "") for each in own) == choice["message"]["content"]
        assert own[-1]["finish_reason"] == choice["finish_reason"]
        assert own[-1].get("gates") == choice.get("gates")


@pytest.mark.parametrize("options", [{}, {"echo": True, "logprobs": 1}, {"best_of": 3}])
def test_completions_take_each_prompt_with_each_variant(server: Server, options: dict[str, Any]) -> None:
    common = {"max_tokens": 6, "temperature": 1, "seed": 3, "n": 2, **options}
    everywhere = [{"vector": "bold", "positions": "all"}]
    variants: list[dict[str, Any]] = [{}, {"steering": everywhere}]
    together = answer(server, TEXT, {"prompt": ["One", "Two"], **common, "variants": variants})
    alone = [
        answer(server, TEXT, {"prompt": prompt, **common, **variant})
        for prompt in ("One", "Two")
        for variant in variants
    ]
    expected = [{**choice, "steering": each["steering"]} for each in alone for choice in each["choices"]]
    check_same(together["choices"], [{**choice, "index": index} for index, choice in enumerate(expected)])
    assert "steering" not in together
    if "best_of" not in options:
        chunks = [
            each["choices"][0] for each in streamed(server, TEXT, {"prompt": "One", **common, "variants": variants})
        ]
        first = [next(each for each in chunks if each["index"] == index) for index in range(4)]
        assert [each["steering"] for each in first] == [each["steering"] for each in expected[:4]]


@pytest.mark.parametrize(
    ("variant", "param", "said"),
    [
        ({"steering": [{"vector": "nobody"}]}, "variants.1.steering.0.vector", "nobody"),
        ({"steering": [{"vector": "calm", "layers": [99]}]}, "variants.1.steering.0.layers", "99"),
        ({"steering": [{"vector": "calm", "scale": "x"}]}, "variants.1.steering.0.scale", "finite number"),
        ({"messages": []}, "variants.1.messages", ""),
        ({"messages": [{"role": "user", "content": "x" * 600}]}, "variants.1.messages", "512"),
        ({"temperature": 0}, "variants.1.temperature", "temperature"),
    ],
)
def test_an_error_names_the_variant(server: Server, variant: dict[str, Any], param: str, said: str) -> None:
    body = {"messages": ASKED["messages"], "variants": [{}, variant]}
    error = server.http.post(CHAT, json=body).json()["error"]
    assert error["param"] == param
    assert said in error["message"]
    assert server.is_idle()


def test_no_more_variants_than_the_server_can_run(server: Server) -> None:
    assert server.http.post(CHAT, json={**ASKED, "variants": []}).json()["error"]["param"] == "variants"
    body = {"messages": ASKED["messages"], "variants": [{}] * 128, "n": 128}
    assert server.http.post(CHAT, json=body).json()["error"]["param"] == "variants"
    assert server.http.post(TEXT, json={"prompt": "x", "variants": [{}] * 128, "n": 128}).status_code == 400


def test_one_choice_ends_and_the_others_stream_on(server: Server) -> None:
    body = {"messages": ASKED["messages"], "max_tokens": 100, "temperature": 0, "ignore_eos": True, "stream": True}
    body |= {"variants": [{"steering": []}, {"steering": CALM}, {"steering": BOLD}], "return_token_ids": True}
    before = server.http.get("/metrics").text
    counted = [0, 0, 0]
    with httpx.Client(base_url=server.url, timeout=60) as client, client.stream("POST", CHAT, json=body) as said:
        chunks = chunks_of(said.iter_lines())
        answer_id = next(chunks)["id"]
        cancelled = server.http.post(f"/v1/streams/{answer_id}/cancel", json={"choices": [1]})
        assert cancelled.json() == {"id": answer_id, "object": "stream.cancelled", "choices": [1]}
        eventually(lambda: server.engine.stats().num_running == 2)
        assert server.http.post(f"/v1/streams/{answer_id}/cancel", json={"choices": [3]}).status_code == 400
        reasons = {}
        for chunk in chunks:
            (choice,) = chunk["choices"]
            counted[choice["index"]] += len(choice.get("token_ids", ()))
            if choice["finish_reason"] is not None:
                reasons[choice["index"]] = choice["finish_reason"]
    assert reasons == {0: "length", 1: "abort", 2: "length"}
    assert counted[1] < counted[0] == counted[2] == 100
    eventually(server.is_idle)
    after = server.http.get("/metrics").text
    line = 'vllm:request_success_total{finished_reason="abort",model_name="tiny"} '
    assert line not in before
    assert f"{line}1.0" in after
    gone = server.http.post(f"/v1/streams/{answer_id}/cancel", json={})
    assert (gone.status_code, gone.json()["error"]["code"]) == (404, "not_found")


def test_only_who_asked_may_cancel_and_without_a_list_it_ends_all(tmp_path: Path) -> None:
    keys = ApiKeys(use=["one-key", "other-key"])
    with serving(tmp_path, keys=keys, key="one-key", rate_limit=1) as running:
        running.store.put("calm", vector(1))
        ended: list[dict[str, Any]] = []
        begun, ids = threading.Event(), []

        def ask() -> None:
            body = {"prompt": "go", "max_tokens": 200, "ignore_eos": True, "stream": True, "variants": [{}, {}]}
            with httpx.stream("POST", running.url + TEXT, json=body, headers=running.headers, timeout=60) as said:
                for chunk in chunks_of(said.iter_lines()):
                    ids.append(chunk["id"])
                    begun.set()
                    ended.extend(each for each in chunk["choices"] if each["finish_reason"] is not None)

        asking = threading.Thread(target=ask)
        asking.start()
        assert begun.wait(20)
        place = f"{running.url}/v1/streams/{ids[0]}/cancel"
        assert httpx.post(place, json={}).status_code == 401
        assert httpx.post(place, json={}, headers={"Authorization": "Bearer other-key"}).status_code == 404
        # not counted by the rate limit, which the request itself has used up
        assert httpx.post(place, json={}, headers=running.headers).json()["choices"] == [0, 1]
        asking.join(20)
        assert [each["finish_reason"] for each in ended] == ["abort", "abort"]
        eventually(running.is_idle)
