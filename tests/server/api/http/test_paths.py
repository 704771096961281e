"""Base URLs as people write them: a slash too many, one at the end, `/v1` twice or not at all."""

from __future__ import annotations

import gzip
import json
import logging
import re
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from server.keys import ApiKeys
from tests.server.api.serving import MODEL, Server, serving

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4, "temperature": 0}
KEY = "use-key-1"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("data")) as running:
        yield running


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("data"), keys=ApiKeys(use=[KEY], manage=["m"]), rate_limit=600) as running:
        yield running


def spellings(path: str) -> list[str]:
    """Other spellings of `path`."""
    return [
        path.replace("/", "//"),
        f"{path}/",
        f"{path}//",
        *([path.removeprefix("/v1"), f"/v1{path}"] if path.startswith("/v1/") else []),
    ]


def described(server: Server) -> Iterator[tuple[str, str]]:
    """Every method and path of the API, with names that nothing has."""
    for path, methods in server.http.get("/openapi.json").json()["paths"].items():
        for method in methods:
            yield method.upper(), re.sub(r"\{[^}]*\}", "nothing", path)


def answer(server: Server, method: str, path: str) -> tuple[int, str | None]:
    """The status and code of a call without a body."""
    response = server.http.request(method, server.url + path)
    is_error = response.status_code >= 400
    return response.status_code, response.json()["error"]["code"] if is_error else None


def test_every_route_is_found_under_every_spelling(server: Server, locked: Server) -> None:
    """With keys each route under each, so that none is a way in; without, each spelling with some of the routes."""
    for number, (method, path) in enumerate(described(server)):
        others = spellings(path)
        for running, tried in ((server, [others[number % len(others)]]), (locked, others)):
            expected = answer(running, method, path)
            assert expected[1] != "unknown_url"
            for spelling in tried:
                assert answer(running, method, spelling) == expected, (method, spelling)


@pytest.mark.parametrize("suffix", ["", "/", "//", "/v1", "/v1/", "/v1//", "//v1", "/v1/v1"])
def test_the_client_works_with_every_base_url(server: Server, suffix: str) -> None:
    with openai.OpenAI(base_url=server.url + suffix, api_key="none", max_retries=0) as client:
        expected = server.sdk.chat.completions.create(model=MODEL, **CHAT).choices[0].message.content
        assert client.chat.completions.create(model=MODEL, **CHAT).choices[0].message.content == expected
        stream = client.chat.completions.create(model=MODEL, stream=True, **CHAT)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == expected
        assert client.models.retrieve(MODEL).id == MODEL
        assert next(iter(client.models.list())).id == MODEL


@pytest.mark.parametrize("path", ["/nothing", "//nothing", "/v1/nothing/", "/chat", "/v2/chat/completions", "/page"])
def test_what_is_no_route_is_still_unknown(server: Server, path: str) -> None:
    assert answer(server, "GET", path) == (404, "unknown_url")


def test_keys_and_limits_hold_under_every_spelling(locked: Server) -> None:
    path = "/v1/chat/completions"
    for spelling in spellings(path):
        assert locked.http.post(locked.url + spelling, json=CHAT).status_code == 401
        response = locked.http.post(locked.url + spelling, json=CHAT, headers={"Authorization": f"Bearer {KEY}"})
        assert response.status_code == 200
        assert response.headers["x-ratelimit-limit-requests"] == "600"


def test_the_log_has_the_path_of_the_route(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="tiller.access"):
        for spelling in ("/models/", "/v1//models"):
            server.http.get(server.url + spelling)
    paths = [record.__dict__["fields"]["path"] for record in caplog.records if record.name == "tiller.access"]
    assert paths == ["/v1/models"] * 2


def test_a_byte_order_mark_is_no_part_of_the_body(server: Server) -> None:
    content = b"\xef\xbb\xbf" + json.dumps(CHAT).encode()
    response = server.http.post("/v1/chat/completions", content=content, headers={"Content-Type": "application/json"})
    assert response.status_code == 200


def test_a_compressed_body_is_refused_by_name(server: Server) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    content = gzip.compress(json.dumps(CHAT).encode())
    response = server.http.post("/v1/chat/completions", content=content, headers=headers)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (400, "invalid_header", "Content-Encoding")
    assert "gzip" in error["message"]
