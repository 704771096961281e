"""Directions that a request brings steer and are read as the same vector of the registry, on every endpoint."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from server.keys import ApiKeys
from server.steering import inline
from server.steering.inline import InlineVectors
from tests.server.api.serving import HIDDEN, LAYERS, MODEL, Server, direction, serving
from vectors.errors import InvalidVector
from vectors.vector import SteeringVector

KEYS = ApiKeys(use=["use-key"], manage=["manage-key"])
CHAT = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
ASKED: dict[str, dict[str, Any]] = {
    "chat/completions": CHAT,
    "completions": {"prompt": "Hello", "max_tokens": 4},
    "responses": {"input": "Hello", "max_output_tokens": 4},
    "decisions": {
        "input": "Hello",
        "questions": [{"type": "predicate", "name": "music", "instructions": "It is about music."}],
    },
}
SETTINGS = {"scale": 0.6, "positions": {"of": "prompt", "last": 2}}


def encoded(tensor: torch.Tensor) -> str:
    return base64.b64encode(tensor.numpy().astype("<f4").tobytes()).decode()


DIRECTIONS = {"mlp.1": encoded(direction(3)), "mlp.0": encoded(direction(4))}
VECTOR = SteeringVector({1: direction(3), 0: direction(4)}, site="mlp")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("data")) as running:
        running.store.put("stored", VECTOR)
        yield running


def test_directions_of_a_request_steer_as_the_uploaded_vector_does(server: Server) -> None:
    """Through OpenAI's SDK, beside a probe with directions and one of the registry."""
    sdk: Any = server.sdk
    answers = []
    for own in ({"directions": DIRECTIONS}, {"vector": "stored"}):
        probes = [{**own, "name": "read", "layers": [1], "positions": {"of": "response", "from": 1, "to": 3}}]
        answers.append(
            sdk.chat.completions.create(
                model=MODEL, messages=CHAT["messages"], max_tokens=4, temperature=0, logprobs=True,
                extra_body={"steering": [{**own, **SETTINGS}], "probes": probes, "ignore_eos": True},
            )
        )  # fmt: skip
    (inlined,), (stored,) = (answer.choices for answer in answers)
    assert inlined.message.content == stored.message.content
    for one, other in zip(inlined.logprobs.content, stored.logprobs.content, strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
    scores = inlined.probes["read"]["scores"]
    assert [score is None for score in scores] == [True, False, False, True]
    assert scores[1:3] == pytest.approx(stored.probes["read"]["scores"][1:3], abs=1e-4)
    assert inlined.probes["read"]["max"] == pytest.approx(max(scores[1:3]))
    (shown,), (known,) = (answer.steering for answer in answers)
    assert shown["vector"] is None
    assert {**shown, "vector": "stored"} == known
    assert known["revision"] == VECTOR.revision
    assert known["positions"] == SETTINGS["positions"]


@pytest.mark.parametrize("endpoint", ASKED)
def test_every_endpoint_takes_them(server: Server, endpoint: str) -> None:
    answers = []
    for own in ({"directions": DIRECTIONS}, {"vector": "stored"}):
        body = {**ASKED[endpoint], "steering": [{**own, **SETTINGS}]}
        if endpoint != "decisions":
            body["temperature"] = 0
        answer = server.http.post(f"/v1/{endpoint}", json={"model": MODEL, **body})
        assert answer.status_code == 200, answer.text
        answers.append(answer.json())
    (shown,), (known,) = (answer["steering"] for answer in answers)
    assert {**shown, "vector": "stored"} == known
    if endpoint == "decisions":
        one, other = (answer["answers"][0]["probability"] for answer in answers)
        assert one == pytest.approx(other, abs=1e-5)
        return
    for name in ("choices", "output"):
        texts = [str(answer.get(name)).partition("'id'")[0] for answer in answers]
        assert texts[0] == texts[1]


NOT_A_NUMBER = torch.full((HIDDEN,), float("nan"))
REFUSED: list[tuple[Any, str, str | None, str]] = [
    ({}, "invalid_vector", "directions", "layers"),
    ({"residual.1": "AAAA"}, "invalid_vector", "directions", f"base64 of {HIDDEN}"),
    ({"residual.1": "!" * 172}, "invalid_vector", "directions", "base64"),
    ({"residual.1": "A" * (1 << 20)}, "invalid_vector", "directions", "base64"),
    ({"residual.1": encoded(NOT_A_NUMBER)}, "invalid_vector", "directions", "NaN"),
    ({"residual.1": encoded(torch.zeros(HIDDEN))}, "invalid_vector", "directions", "zeros"),
    ({f"residual.{LAYERS}": DIRECTIONS["mlp.1"]}, "invalid_vector", "directions", "outside the model"),
    ({"residual.01": DIRECTIONS["mlp.1"]}, "invalid_vector", "directions", "places such as"),
    ({"residual.1.read": DIRECTIONS["mlp.1"]}, "invalid_vector", "directions", "uploaded"),
    ({"stream.1": DIRECTIONS["mlp.1"]}, "invalid_vector", "directions", "places such as"),
    ({**DIRECTIONS, "residual.1": DIRECTIONS["mlp.1"]}, "invalid_vector", "directions", "one site"),
    ({f"mlp.{layer}": "" for layer in range(LAYERS + 1)}, "invalid_vector", "directions", "layers"),
    ({"residual.1": 3}, "invalid_type", "directions.residual.1", "string"),
]


@pytest.mark.parametrize(("directions", "code", "field", "words"), REFUSED)
@pytest.mark.parametrize("kind", ["steering", "probes"])
def test_directions_that_cannot_be_used_are_refused(
    server: Server, kind: str, directions: Any, code: str, field: str, words: str
) -> None:
    entry = {"directions": directions, **({"name": "x"} if kind == "probes" else {})}
    answer = server.http.post("/v1/chat/completions", json={**CHAT, kind: [entry]})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, code, f"{kind}.0.{field}")
    assert words in error["message"]


@pytest.mark.parametrize(
    ("kind", "entry", "code", "field"),
    [
        ("steering", {"scale": 1.0}, "missing_required_parameter", "vector"),
        ("steering", {"vector": "stored", "directions": DIRECTIONS}, "invalid_value", "directions"),
        ("probes", {"directions": DIRECTIONS}, "missing_required_parameter", "name"),
        (
            "steering",
            {"vector": "stored", "positions": {"of": "response", "last": 2}},
            "invalid_positions",
            "positions",
        ),
        ("probes", {"vector": "stored", "positions": "everywhere"}, "invalid_positions", "positions"),
    ],
)
def test_an_entry_has_one_vector_and_positions_that_can_be_known(
    server: Server, kind: str, entry: dict[str, Any], code: str, field: str
) -> None:
    answer = server.http.post("/v1/chat/completions", json={**CHAT, kind: [entry]})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, code, f"{kind}.0.{field}")


def test_a_request_has_a_limited_number_of_windows(server: Server) -> None:
    windows = [{"vector": "stored", "positions": {"of": "prompt", "first": number}} for number in range(1, 10)]
    assert server.http.post("/v1/chat/completions", json={**CHAT, "steering": windows[:8]}).status_code == 200
    probes = [{**windows[8], "name": "x", "layers": [1]}]
    error = server.http.post("/v1/chat/completions", json={**CHAT, "steering": windows[:8], "probes": probes}).json()
    assert (error["error"]["code"], error["error"]["param"]) == ("invalid_positions", "probes.0.positions")


@pytest.mark.parametrize("is_allowed", [False, True])
def test_use_keys_need_the_permission_and_manage_keys_have_it(tmp_path: Any, is_allowed: bool) -> None:
    with serving(tmp_path, keys=KEYS, key="use-key", inline_directions=is_allowed) as server:
        for kind, more in (("steering", {}), ("probes", {"name": "x"})):
            for key in ("use-key", "manage-key"):
                answer = server.http.post(
                    "/v1/chat/completions",
                    json={**CHAT, kind: [{"directions": DIRECTIONS, **more}]},
                    headers={"Authorization": f"Bearer {key}"},
                )
                if is_allowed or key == "manage-key":
                    assert answer.status_code == 200, answer.text
                    continue
                error = answer.json()["error"]
                assert (answer.status_code, error["code"]) == (403, "directions_not_allowed")
                assert error["param"] == f"{kind}.0.directions"
                assert "--inline-directions" in error["message"]


class Model:
    num_layers, hidden_size, sites = 4, 1024, ("residual",)


def test_the_latest_are_remembered_by_their_content(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inline, "_MAX_REMEMBERED_BYTES", 3 * 4096)
    known = InlineVectors()
    texts = [base64.b64encode(np.full(1024, number + 1, dtype="<f4").tobytes()).decode() for number in range(5)]
    first = known.get({"residual.1": texts[0]}, Model())
    assert known.get({"residual.1": texts[0]}, Model()) is first
    assert known.get({"residual.2": texts[0]}, Model()) is not first
    for text in texts:
        known.get({"residual.1": text}, Model())
        assert len(known) <= 3
    assert known.get({"residual.1": texts[4]}, Model()).directions[1][0] == 5
    assert len(known) == 3
    with pytest.raises(InvalidVector):
        known.get({"mlp.1": texts[0]}, Model())
    assert len(known) == 3
