"""Pages that `--cors-origin` names reach the server from a browser; nobody else gets further than before."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.api.http.parameters import RATE_LIMITS
from server.keys import ApiKeys, KeysRefused, check_origins
from tests.server.api.serving import Server, serving

PAGE = "https://app.example"
HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def open_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server without keys that a page may use."""
    with serving(tmp_path_factory.mktemp("data"), cors_origin=(PAGE,), rate_limit=1000) as running:
        yield running


def preflight(server: Server, origin: str, method: str = "POST", path: str = CHAT) -> httpx.Response:
    """What a browser asks before a page's request with the headers of OpenAI's client."""
    asked = {
        "Origin": origin,
        "Access-Control-Request-Method": method,
        "Access-Control-Request-Headers": "authorization,content-type,x-stainless-lang",
        "Access-Control-Request-Private-Network": "true",
    }
    return server.http.options(path, headers=asked)


def allowed_origin(response: httpx.Response) -> str | None:
    """To whom a browser would show the answer."""
    found: str | None = response.headers.get("access-control-allow-origin")
    return found


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE"])
def test_a_browser_may_ask_for_the_page(open_server: Server, method: str) -> None:
    response = preflight(open_server, PAGE, method)
    assert (response.status_code, allowed_origin(response)) == (200, PAGE)
    assert "authorization" in response.headers["access-control-allow-headers"]
    assert response.headers["access-control-allow-private-network"] == "true"
    assert "access-control-allow-credentials" not in response.headers


def test_the_page_is_answered_and_may_read_what_it_needs(open_server: Server) -> None:
    response = open_server.http.post(CHAT, json=HELLO, headers={"Origin": PAGE})
    assert (response.status_code, allowed_origin(response)) == (200, PAGE)
    exposed = response.headers["access-control-expose-headers"].split(", ")
    assert {"x-request-id", "x-ratelimit-remaining-requests", "retry-after", "etag"} <= set(exposed)
    assert {header.name for header in RATE_LIMITS} <= set(exposed)
    assert {"x-request-id", "x-ratelimit-remaining-requests"} <= response.headers.keys()
    assert "Origin" in response.headers["vary"]


def test_streams_and_errors_carry_the_headers(open_server: Server) -> None:
    for path, body, status in ((CHAT, HELLO | {"stream": True}, 200), (CHAT, {}, 400), ("/v1/none", {}, 404)):
        headers = {"Origin": PAGE, "Sec-Fetch-Site": "cross-site"}  # as browsers send them
        response = open_server.http.post(path, json=body, headers=headers)
        assert (response.status_code, allowed_origin(response)) == (status, PAGE)


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "http://app.example", f"{PAGE}:8443", f"{PAGE}.evil", "null"]
)
def test_other_pages_stay_strangers(open_server: Server, origin: str) -> None:
    asked = preflight(open_server, origin)
    assert (asked.status_code, allowed_origin(asked)) == (403, None)
    assert asked.json()["error"]["code"] == "cross_origin"
    sent = open_server.http.post(CHAT, json=HELLO, headers={"Origin": origin})
    assert (sent.status_code, sent.json()["error"]["code"], allowed_origin(sent)) == (403, "cross_origin", None)


def test_an_allowed_page_under_a_name_of_its_own_is_a_stranger(open_server: Server) -> None:
    rebound = {"Host": "app.example", "Origin": PAGE}  # its name was made to point to this machine
    response = open_server.http.post(CHAT, json=HELLO, headers=rebound)
    assert (response.status_code, response.json()["error"]["code"]) == (403, "cross_origin")


def test_with_keys_every_page_may_ask_and_none_gets_in_without_one(tmp_path: Path) -> None:
    with serving(tmp_path, keys=ApiKeys(use=["k1"]), cors_origin=("*",)) as server:
        headers = {"Origin": "https://anyone.example"}
        refused = server.http.post(CHAT, json=HELLO, headers=headers)
        assert (refused.status_code, allowed_origin(refused)) == (401, "*")
        answered = server.http.post(CHAT, json=HELLO, headers=headers | {"Authorization": "Bearer k1"})
        assert (answered.status_code, allowed_origin(answered)) == (200, "*")


def test_without_the_option_no_browser_is_told_anything(server: Server) -> None:
    assert preflight(server, PAGE).status_code == 405
    assert allowed_origin(server.http.get("/health", headers={"Origin": PAGE})) is None


def test_every_page_on_a_server_without_keys_must_be_meant() -> None:
    check_origins(["*"], ApiKeys(use=["k1"]), insecure=False)
    check_origins(["*"], ApiKeys(), insecure=True)
    check_origins([PAGE], ApiKeys(), insecure=False)
    with pytest.raises(KeysRefused, match=r"--cors-origin \*"):
        check_origins(["*"], ApiKeys(), insecure=False)
