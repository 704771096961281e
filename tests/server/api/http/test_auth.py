"""Keys and roles over HTTP: who may call what, and that no key is ever told."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from server.api.http import auth
from server.api.http.rate_limits import RateLimits
from server.keys import ApiKeys
from tests.server.api.serving import Server, serving, vector
from vectors.formats.safetensors import encode_safetensors

USE, MANAGE = "use-key-1", "manage-key-1"
PATH = "/v1/steering/vectors"
HELLO: Any = [{"role": "user", "content": "hi"}]

USED: list[tuple[str, str, Any]] = [
    ("GET", "/v1/models", None),
    ("GET", "/v1/models/tiny", None),
    ("GET", PATH, None),
    ("GET", f"{PATH}/kept", None),
    ("GET", f"{PATH}/kept/content", None),
    ("GET", "/metrics", None),
    ("POST", "/v1/chat/completions", {"messages": HELLO, "max_tokens": 1}),
    ("POST", "/v1/completions", {"prompt": "a", "max_tokens": 1}),
]
MANAGED: list[tuple[str, str, Any]] = [
    ("PUT", f"{PATH}/kept", None),
    ("POST", PATH, {"name": "new", "directions": {"0": [1.0] * 32}}),
    ("PATCH", f"{PATH}/kept", {"default_scale": 2}),
    ("POST", f"{PATH}/kept/rollback", {"revision": "0" * 8}),
    ("DELETE", f"{PATH}/nobody", None),
]
OPEN = ("/health", "/ready", "/version")


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with one key of each role; its clients hold none."""
    with serving(tmp_path_factory.mktemp("data"), keys=ApiKeys(use=[USE], manage=[MANAGE])) as running:
        running.store.put("kept", vector(1))
        yield running


def call(server: Server, method: str, path: str, body: Any, authorization: str | None) -> Any:
    """A call with this authorization."""
    headers = {} if authorization is None else {"Authorization": authorization}
    content = encode_safetensors(vector(1)) if method == "PUT" else None
    return server.http.request(method, path, json=body, content=content, headers=headers)


@pytest.mark.parametrize(("method", "path", "body"), USED + MANAGED)
def test_without_a_valid_key_nothing_is_done(locked: Server, method: str, path: str, body: Any) -> None:
    for authorization in (None, "Bearer wrong", f"Basic {USE}", "Bearer", USE, f"Bearer {USE}x", "Bearer \xe9"):
        encoded = authorization.encode("latin-1") if authorization is not None else None
        response = call(locked, method, path, body, encoded)  # type: ignore[arg-type]
        assert response.status_code == 401
        assert response.json()["error"]["code"] == "invalid_api_key"
        assert response.headers["www-authenticate"] == "Bearer"
        assert USE not in response.text


@pytest.mark.parametrize(("method", "path", "body"), USED)
def test_both_roles_may_use(locked: Server, method: str, path: str, body: Any) -> None:
    for key in (USE, MANAGE):
        assert call(locked, method, path, body, f"Bearer {key}").status_code == 200


@pytest.mark.parametrize(("method", "path", "body"), MANAGED)
def test_only_manage_may_change_the_registry(locked: Server, method: str, path: str, body: Any) -> None:
    refused = call(locked, method, path, body, f"Bearer {USE}")
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "insufficient_permissions")
    assert call(locked, method, path, body, f"Bearer {MANAGE}").status_code in (200, 201, 404)


@pytest.mark.parametrize("path", OPEN)
def test_probes_need_no_key(locked: Server, path: str) -> None:
    assert call(locked, "GET", path, None, None).status_code == 200


def test_a_refused_upload_is_not_read(locked: Server) -> None:
    response = locked.http.put(f"{PATH}/kept", content=b"x" * 100, headers={"Authorization": f"Bearer {USE}"})
    assert response.status_code == 403


def test_the_sdk_sees_its_own_exceptions(locked: Server) -> None:
    with openai.OpenAI(base_url=f"{locked.url}/v1", api_key="wrong", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError):
            client.models.list()
        with pytest.raises(openai.PermissionDeniedError):
            client.with_options(api_key=USE).delete("/steering/vectors/kept", cast_to=object)
        assert client.with_options(api_key=USE).models.list().data[0].id == "tiny"


def test_wrong_keys_are_slowed_and_right_ones_from_the_same_address_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "WRONG_KEY_SECONDS", 2.0)
    with serving(tmp_path, keys=ApiKeys(use=[USE])) as server:
        assert server.app is not None
        server.app.state.services = replace(server.app.state.services, wrong_keys=RateLimits(2))
        statuses = [call(server, "GET", "/v1/models", None, f"Bearer guess{number}").status_code for number in range(2)]
        assert statuses == [401, 401]
        for path in ("/v1/chat/completions", "/v1/completions"):
            with pytest.raises(httpx.ReadTimeout):
                httpx.request("POST", server.url + path, headers={"Authorization": "Bearer wrong"}, timeout=0.5)
        assert call(server, "GET", "/v1/models", None, f"Bearer {USE}").status_code == 200
        assert call(server, "GET", "/v1/models", None, None).status_code == 401  # no guess


STRANGERS = [
    "evil.example",
    "localhost.evil.example",
    "127.0.0.1.evil.example",
    "192.168.0.7",
    "0.0.0.0",
    "[::2]",
    "x:y",
    "evil.example@127.0.0.1",
    "127.0.0.1@evil.example",
    "127.0.0.1#.evil.example",
    "127.0.0.1/.evil.example",
    "127.0.0.1\\.evil.example",
    "127.0.0.1 .evil.example",
    "[::1].evil.example",
]
OWN = ["127.0.0.1", "127.0.0.1:8000", "localhost", "LOCALHOST:3000", "[::1]:8000", "127.8.8.8"]


@pytest.mark.parametrize(("method", "path", "body"), USED + MANAGED)
def test_without_keys_no_page_from_elsewhere_is_answered(server: Server, method: str, path: str, body: Any) -> None:
    before = server.store.current_records()
    foreign = [{"Host": host} for host in STRANGERS] + [{"Origin": f"https://{host}"} for host in STRANGERS]
    for headers in (*foreign, {"Origin": "null"}, {"Origin": ""}, {"Origin": "file://"}, {"Host": ""}):
        response = server.http.request(method, path, content=json.dumps(body), headers=headers)
        assert (response.status_code, response.json()["error"]["code"]) == (403, "cross_origin"), headers
    assert server.store.current_records() == before


def test_without_keys_no_request_that_another_site_causes_is_answered(server: Server) -> None:
    """What a browser sends for such a request: Origin, or Sec-Fetch-Site where it sends no Origin."""
    before = server.store.current_records()
    own, listed = ("Origin", "http://localhost:3000"), ("Origin", "https://page.example")
    elsewhere = ("Sec-Fetch-Site", "cross-site")
    body = json.dumps({"name": "csrf", "directions": {"0": [1.0] * 48}})
    refused = ([elsewhere], [own, ("Origin", "https://evil.example")], [("Sec-Fetch-Site", "none"), elsewhere])
    for headers in refused:
        for method, path in (("POST", "/v1/steering/vectors"), ("GET", "/v1/models"), ("GET", "/metrics")):
            response = server.http.request(method, path, headers=headers, content=body)
            assert (response.status_code, response.json()["error"]["code"]) == (403, "cross_origin"), headers
    assert server.store.current_records() == before
    for site in ("same-origin", "same-site", "none"):
        assert server.http.get("/v1/models", headers={"Sec-Fetch-Site": site}).status_code == 200
    assert server.http.get("/v1/models", headers=[own, elsewhere]).status_code == 200  # localhost is not 127.0.0.1
    assert server.http.get("/v1/models", headers=[listed, elsewhere]).status_code == 403
    assert server.http.get("/health", headers=[elsewhere]).status_code == 200


def test_without_keys_this_machine_is_answered_under_all_its_names(server: Server) -> None:
    for host in OWN:
        assert server.http.get("/v1/models", headers={"Host": host}).status_code == 200
        assert server.http.get("/v1/models", headers={"Origin": f"http://{host}"}).status_code == 200


def test_whoever_has_a_key_or_accepted_the_risk_is_asked_for_no_name(locked: Server, tmp_path: Path) -> None:
    foreign = {"Host": "tiller.example", "Origin": "https://page.example"}
    assert locked.http.get("/v1/models", headers=foreign | {"Authorization": f"Bearer {USE}"}).status_code == 200
    with serving(tmp_path, insecure=True) as insecure:
        assert insecure.http.get("/v1/models", headers=foreign).status_code == 200
