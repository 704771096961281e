"""Answers say how strong their steering is, and a scale above a vector's limit is refused, capped or warned of."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from server.steering.norms import TypicalNorms
from tests.server.api.serving import LAYERS, Server, direction, serving
from vectors.vector import SteeringVector
from vectors.vocabulary import Place

MEANS: dict[Place, float] = {("residual", layer): 10.0 + layer for layer in range(LAYERS)}
CALIBRATION: dict[str, Any] = {
    "safe_scale": [-0.5, 1.5], "operation": "add", "positions": "response", "layers": [1], "norms": {"1": 8.0},
    "fingerprint": "",
}  # fmt: skip
POLICIES = ("refuse", "cap", "warn", "off")


@pytest.fixture(scope="module", params=POLICIES)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder: Path = tmp_path_factory.mktemp(request.param)
    with serving(folder, norms=TypicalNorms(MEANS, 9), dose_limit=request.param) as server:
        server.store.put("free", SteeringVector({1: direction(1)}))
        server.store.put("safe", SteeringVector({1: direction(1)}, calibration=CALIBRATION))
        yield server


def policy(server: Server) -> str:
    assert server.app is not None
    return str(server.app.state.services.settings.dose_limit)


def posts(steering: list[dict[str, Any]], model: str) -> dict[str, dict[str, Any]]:
    """A request to each endpoint that steers, by path."""
    common = {"steering": steering, "model": model, "temperature": 0}
    return {
        "/v1/chat/completions": common | {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3},
        "/v1/completions": common | {"prompt": "Hi", "max_tokens": 3},
        "/v1/responses": common | {"input": "Hi", "max_output_tokens": 16, "store": False},
    }


def test_the_limit_holds_on_every_endpoint_and_by_model_name(server: Server) -> None:
    for steering, model in (([{"vector": "safe", "scale": 2}], "tiny"), ([], "tiny+safe:2")):
        for path, body in posts(steering, model).items():
            answer = server.http.post(path, json=body)
            if policy(server) == "refuse":
                error = answer.json()["error"]
                param = "steering.0.scale" if steering else "model"
                assert (answer.status_code, error["code"], error["param"]) == (400, "scale_above_limit", param)
                continue
            (entry,) = answer.json()["steering"]
            expected = {"cap": (1.5, True, 2), "warn": (2, True, None), "off": (2, False, None)}
            told = entry["scale"], "warning" in entry, entry.get("capped_from")
            assert told == expected[policy(server)], path
            length = float(direction(1).double().norm())
            assert entry["relative_dose"] == pytest.approx(entry["scale"] * length / 8.0)


def test_a_share_is_the_same_as_its_scale(server: Server) -> None:
    path, body = next(iter(posts([{"vector": "safe", "scale": "-50%"}], "tiny").items()))
    by_share = server.http.post(path, json=body).json()
    by_name = server.http.post(path, json=body | {"steering": [], "model": "tiny+safe:-50%"}).json()
    by_scale = server.http.post(path, json=body | {"steering": [{"vector": "safe", "scale": -0.25}]}).json()
    assert by_share["steering"] == by_name["steering"] == by_scale["steering"]
    assert by_share["choices"] == by_name["choices"] == by_scale["choices"]
    for scale, code in (("50 %", "invalid_value"), ("nan%", "invalid_value"), (True, "invalid_type")):
        refused = server.http.post(path, json=body | {"steering": [{"vector": "safe", "scale": scale}]})
        error = refused.json()["error"]
        assert (refused.status_code, error["code"], error["param"]) == (400, code, "steering.0.scale")
    refused = server.http.post(path, json=body | {"steering": [{"vector": "free", "scale": "50%"}]})
    error = refused.json()["error"]
    assert (refused.status_code, error["code"], error["param"]) == (400, "no_safe_range", "steering.0.scale")


def test_a_stream_says_it_in_its_first_chunk_and_neighbours_are_not_changed(server: Server) -> None:
    def text(steering: list[dict[str, Any]]) -> str:
        body = posts(steering, "tiny")["/v1/completions"] | {"max_tokens": 8}
        return str(server.http.post("/v1/completions", json=body).json().get("choices"))

    asked = [[], [{"vector": "free", "scale": 2}], [{"vector": "safe", "scale": 1}], [{"vector": "safe", "scale": 2}]]
    alone = [text(steering) for steering in asked]
    with concurrent.futures.ThreadPoolExecutor(len(asked)) as pool:
        assert list(pool.map(text, asked)) == alone
    assert (alone[1] == alone[3]) == (policy(server) in ("warn", "off"))
    if policy(server) == "cap":
        stream = server.sdk.chat.completions.create(
            model="tiny+safe:2", messages=[{"role": "user", "content": "Hi"}], max_tokens=3, stream=True
        )
        first: Any = next(iter(stream))
        assert first.steering[0]["capped_from"] == 2
        assert first.steering[0]["warning"].endswith("1.5 was used")
