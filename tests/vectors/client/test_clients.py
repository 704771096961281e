"""The registry's Python client, waiting and awaited alike, against a real server and against ones that talk nonsense.

Every test runs with both clients: `Awaited` drives the asynchronous one from a loop in another thread.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import random
import socket
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from anyio.from_thread import BlockingPortal, start_blocking_portal

from server.keys import ApiKeys
from tests.server.api.serving import HIDDEN, Server, direction, serving, vector
from tests.stranger import NONSENSE, stranger
from vectors.client.clients import AsyncVectorClient, RegisteredVector, VectorClient
from vectors.client.errors import (
    ClientError,
    Conflict,
    ConnectionFailed,
    Forbidden,
    InvalidConnection,
    InvalidRequest,
    NotFound,
    PayloadTooLarge,
    PreconditionFailed,
    Refused,
    ServerFailure,
    TimedOut,
    Unauthorized,
    UnexpectedAnswer,
    refused,
)
from vectors.errors import InvalidRevision, InvalidVector, InvalidVectorName
from vectors.formats.gguf import encode_gguf
from vectors.formats.safetensors import encode_safetensors
from vectors.vector import SteeringVector

KEY = "s3cret-key/with-\"signs'"
NOWHERE = "http://127.0.0.1:1"

Connect = Callable[..., contextlib.AbstractContextManager[VectorClient]]


class Awaited:
    """An `AsyncVectorClient` that is called as a `VectorClient` is."""

    def __init__(self, client: AsyncVectorClient, portal: BlockingPortal) -> None:
        self._client = client
        self._portal = portal

    def list(self, **arguments: Any) -> Iterator[RegisteredVector]:
        """The vectors, each awaited when it is asked for."""
        found = self._client.list(**arguments)
        with contextlib.suppress(StopAsyncIteration):
            while True:
                yield self._portal.call(anext, found)

    def __getattr__(self, name: str) -> Any:
        return lambda *values, **named: self._portal.call(
            functools.partial(getattr(self._client, name), *values, **named)
        )


@contextlib.contextmanager
def awaited(*arguments: Any, **named: Any) -> Iterator[Any]:
    """An asynchronous client, opened and closed in its own loop."""
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(AsyncVectorClient(*arguments, **named)) as client,
    ):
        yield Awaited(client, portal)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("data"), max_upload_mib=0.25) as running:
        yield running


@pytest.fixture(params=[VectorClient, awaited], ids=["sync", "async"])
def connect(request: pytest.FixtureRequest) -> Connect:
    """Either client's constructor."""
    made: Connect = request.param
    return made


@pytest.fixture
def client(server: Server, connect: Connect) -> Iterator[VectorClient]:
    """A client of the server, whose registry is empty."""
    for name in server.store.names():
        server.store.remove(name)
    with connect(server.url) as opened:
        yield opened


def test_a_file_goes_up_is_described_and_comes_down(server: Server, client: VectorClient, tmp_path: Path) -> None:
    sent = SteeringVector({1: direction(1), 2: direction(2)}, default_scale=0.5, metadata={"by": ["me"]}, model="tiny")
    made = client.put("up", encode_safetensors(sent))
    stored = server.store.get("up")
    assert (made.object, made.id, made.name, made.revision) == ("steering.vector", "up", "up", sent.revision)
    assert (made.created_at, made.bytes) == (stored.record.created_at, stored.record.num_bytes)
    assert (made.hidden_size, made.layers) == (HIDDEN, (1, 2))
    assert made.norms == pytest.approx(sent.norms)
    for name in ("site", "operation", "positions", "parts", "default_scale", "description", "metadata", "training"):
        assert getattr(made, name) == getattr(sent, name), name
    assert (made.model, made.history) == ("tiny", None)
    assert client.content("up") == encode_safetensors(sent)
    assert client.content("up", "gguf") == encode_gguf(sent)
    assert client.vector("up") == sent

    file = tmp_path / "file"
    file.write_bytes(client.content("up"))
    assert client.put("up", file) == made
    with pytest.raises(FileNotFoundError):
        client.put("up", tmp_path / "none")


def test_what_a_file_leaves_open_is_said_with_it(client: VectorClient, tmp_path: Path) -> None:
    torch.save(direction(3), tmp_path / "bare.pt")
    said: dict[str, Any] = {"site": "mlp", "default_scale": -2.0, "operation": "clamp", "positions": "all"}
    said |= {"parts": ["content"], "description": "né ✓", "metadata": {"a": {"b": [1, None]}}, "model": "tiny"}
    made = client.put("bare", tmp_path / "bare.pt", layer=2, training={"seed": 1}, **said)
    read = made.metadata["import"]  # the server notes there what it read, and how
    expected = said | {"parts": ("content",), "metadata": said["metadata"] | {"import": read}, "training": {"seed": 1}}
    assert client.vector("bare") == SteeringVector({2: direction(3)}, **expected)
    assert (made.layers, made.training, made.parts) == ((2,), {"seed": 1}, ("content",))
    with pytest.raises(InvalidRequest) as caught:
        client.put("bare", tmp_path / "bare.pt", layer=2, default_scale="much")  # type: ignore[arg-type]
    assert (caught.value.code, caught.value.param) == ("invalid_vector", "default_scale")


def test_numbers_become_the_vector_that_float32_makes_of_them(client: VectorClient) -> None:
    numbers = [random.Random(layer).uniform(-1e3, 1e3) for layer in range(HIDDEN)]
    made = client.create("made", {1: numbers, 0: direction(1)}, default_scale=3, description="two", positions="all")
    expected = SteeringVector(
        {1: torch.tensor(numbers, dtype=torch.float64).float(), 0: direction(1)},
        default_scale=3.0,
        description="two",
        positions="all",
    )
    assert (made.revision, client.vector("made")) == (expected.revision, expected)
    with pytest.raises(Conflict) as caught:
        client.create("made", {1: numbers})
    assert caught.value.code == "vector_exists"
    for wrong in ([1.0] * 3, [float("nan")] * HIDDEN, [1e39] * HIDDEN, [0.0] * HIDDEN):
        with pytest.raises(InvalidRequest) as refusal:
            client.create("wrong", {1: wrong})
        assert refusal.value.code == "invalid_vector"


def test_a_name_changes_keeps_its_history_goes_back_and_goes(client: VectorClient) -> None:
    first = client.put("life", encode_safetensors(vector(4)))
    second = client.patch("life", description="changed", parts=["reasoning"], metadata={"k": 1})
    assert (second.description, second.parts, second.metadata) == ("changed", ("reasoning",), {"k": 1})
    assert second.norms == first.norms
    found = client.get("life")
    assert [entry.revision for entry in found.history or ()] == [second.revision, first.revision]
    assert (found.history or ())[1].bytes == first.bytes
    assert client.vector("life", revision=first.revision[:6]) == vector(4)
    assert client.content("life", revision=first.revision) == encode_safetensors(vector(4))
    assert client.rollback("life", first.revision[:8]).revision == first.revision
    assert client.get("life").revision == first.revision
    with pytest.raises(NotFound) as no_revision:
        client.rollback("life", "abcdef" * 10)
    assert no_revision.value.code == "revision_not_found"
    client.delete("life")
    asked: list[Callable[[], object]] = [
        lambda: client.get("life"),
        lambda: client.delete("life"),
        lambda: client.rollback("life", first.revision),
        lambda: client.patch("life", description="x"),
        lambda: client.content("life"),
        lambda: client.vector("life"),
    ]
    for ask in asked:
        with pytest.raises(NotFound) as caught:
            ask()
        assert (caught.value.status, caught.value.code) == (404, "vector_not_found")
        assert str(caught.value) == f"{caught.value.message} (HTTP 404)" == "no vector is named 'life' (HTTP 404)"


def test_preconditions_hold_or_nothing_happens(client: VectorClient) -> None:
    content = encode_safetensors(vector(5))
    first = client.put("held", content, if_none_match="*")
    other = client.put("other", encode_safetensors(vector(6))).revision
    asked: list[Callable[[], object]] = [
        lambda: client.put("held", encode_safetensors(vector(7)), if_none_match="*"),
        lambda: client.put("held", encode_safetensors(vector(7)), if_match=other),
        lambda: client.put("held", encode_safetensors(vector(7)), if_match=other, description="told"),
        lambda: client.put("nobody", content, if_match="*"),
        lambda: client.patch("held", if_match=other, description="x"),
        lambda: client.rollback("held", first.revision, if_match=other),
        lambda: client.delete("held", if_match=other),
    ]
    for ask in asked:
        with pytest.raises(PreconditionFailed):
            ask()
    assert [entry.revision for entry in client.get("held").history or ()] == [first.revision]
    second = client.patch("held", if_match=first.revision.upper(), description="x")
    assert client.rollback("held", first.revision, if_match=second.revision).revision == first.revision
    assert client.put("held", encode_safetensors(vector(7)), if_match="*").revision == vector(7).revision
    client.delete("held", if_match=vector(7).revision)


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose list has three pages."""
    with serving(tmp_path_factory.mktemp("crowded")) as running:
        for number in range(201):
            running.store.put(f"v{number:03}", vector(8))
        yield running


def test_a_list_goes_through_every_page(crowded: Server, client: VectorClient, connect: Connect) -> None:
    assert list(client.list()) == []
    names = [f"v{number:03}" for number in range(201)]
    with connect(crowded.url) as other:
        assert [found.name for found in other.list()] == names
        assert [found.name for found in other.list(order="desc")] == names[::-1]
    made = client.put("x", encode_safetensors(vector(8)))
    assert (list(client.list()), made.history) == ([made], None)


def test_a_list_asks_for_a_page_when_it_comes_to_it_and_ends_when_pages_repeat(
    server: Server, connect: Connect
) -> None:
    server.store.put("page", vector(9))
    page = server.http.get("/v1/steering/vectors").json() | {"has_more": True, "last_id": "page"}
    with stranger(json.dumps(page).encode()) as other, connect(other.url) as client:
        found = client.list()
        assert other.asked == []
        for _ in page["data"]:
            next(found)
        assert len(other.asked) == 1
        with pytest.raises(UnexpectedAnswer):
            next(found)
        assert "after=page" in other.asked[1]


def test_a_file_that_is_too_large_or_none_at_all_is_refused(client: VectorClient) -> None:
    with pytest.raises(PayloadTooLarge):
        client.put("large", b"x" * (1 << 19))
    with pytest.raises(InvalidRequest, match="unknown file format: expected one of"):
        client.put("none", b"no vector")
    with pytest.raises(InvalidRequest, match="expected at least one of"):
        client.patch("none")


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../up", "a/b", "a/content", "%2e", "a?b", "a#b", "a\r\nb", "é", "a" * 65]
)
def test_what_is_seen_to_be_wrong_is_not_sent(connect: Connect, name: str) -> None:
    with connect(NOWHERE) as client:
        asked: list[Callable[[], object]] = [
            lambda: client.get(name),
            lambda: client.put(name, b""),
            lambda: client.create(name, {}),
            lambda: client.patch(name),
            lambda: client.rollback(name, "abcdef"),
            lambda: client.content(name),
            lambda: client.vector(name),
            lambda: client.delete(name),
        ]
        for ask in asked:
            with pytest.raises(InvalidVectorName):
                ask()


def test_values_that_no_request_can_carry_are_not_sent(connect: Connect) -> None:
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    with connect(NOWHERE) as client:
        for revision in ("", "abcdef", 'x"\r\nX: y', "é" * 64):
            with pytest.raises(InvalidRevision):
                client.delete("x", if_match=revision)
        for value in (float("nan"), float("inf"), {1, 2}, object(), deep):
            with pytest.raises(InvalidVector):
                client.put("x", b"", metadata={"value": value})
        for numbers in ("text", 5, [None], [10**400]):
            with pytest.raises(InvalidVector) as caught:
                client.create("x", {12: numbers})  # type: ignore[dict-item]
            assert caught.value.param == "directions.12"


@pytest.mark.parametrize("url", ["", "127.0.0.1:8000", "ftp://127.0.0.1", "http://", "http://x:y", "http://me:hush@h"])
def test_an_address_that_cannot_be_used_is_refused(connect: Connect, url: str) -> None:
    with pytest.raises(InvalidConnection) as caught, connect(url):
        pass
    assert caught.value.param == "base_url"
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize("key", ["", "sec ret", "sec\nret", "sécret"])
def test_a_key_that_no_header_can_carry_is_refused_unseen(connect: Connect, key: str) -> None:
    with pytest.raises(InvalidConnection) as caught, connect(NOWHERE, key):
        pass
    assert (caught.value.param, "ret" in str(caught.value)) == ("api_key", False)


def test_the_address_may_be_that_of_the_sdk(server: Server, connect: Connect) -> None:
    for ending in ("", "/", "/v1", "/v1/"):
        with connect(f"{server.url}{ending}", "any") as client:
            list(client.list())


def test_keys_decide_what_a_client_may_do(tmp_path: Path, connect: Connect) -> None:
    with serving(tmp_path, keys=ApiKeys(use=["use"], manage=[KEY])) as server:
        with connect(server.url, KEY) as client:
            client.put("kept", encode_safetensors(vector(1)))
        for key, refusal in ((None, Unauthorized), ("wrong", Unauthorized), ("use", Forbidden)):
            with connect(server.url, key) as client, pytest.raises(refusal):
                client.delete("kept")
        with connect(server.url, "use") as client:
            assert [found.name for found in client.list()] == ["kept"]


def test_who_does_not_answer_is_named(connect: Connect) -> None:
    with connect(NOWHERE) as client, pytest.raises(ConnectionFailed, match=f"no server answers at {NOWHERE}:"):
        client.get("x")
    with connect("http://..") as client, pytest.raises(ConnectionFailed):
        client.get("x")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with connect(url, timeout=0.05) as client, pytest.raises(TimedOut, match=f"{url} did not answer in time"):
            client.get("x")


def every_call(client: VectorClient) -> list[Callable[[], object]]:
    """One call of each method."""
    return [
        lambda: list(client.list()),
        lambda: client.get("x"),
        lambda: client.put("x", b"file"),
        lambda: client.create("x", {1: [1.0]}),
        lambda: client.patch("x", description=""),
        lambda: client.rollback("x", "abcdef"),
        lambda: client.content("x"),
        lambda: client.vector("x"),
        lambda: client.delete("x"),
    ]


@pytest.mark.parametrize(
    "body",
    [
        *NONSENSE,
        b'{"error": {"message": "no"}}',
        b'{"object": "list", "data": 5, "has_more": false}',
        b'{"object": "list", "data": [], "has_more": true, "last_id": null}',
        b'{"object": "list", "data": [{"name": "x"}], "has_more": false, "last_id": null}',
        b'{"object": "steering.vector.deleted", "id": "x", "deleted": false}',
    ],
)
def test_nonsense_is_told_from_an_answer(connect: Connect, body: bytes) -> None:
    with stranger(body) as other, connect(other.url, KEY) as client:
        for call in every_call(client):
            with pytest.raises(UnexpectedAnswer, match="not from a tiller server"):
                call()
    with stranger(body, status=404) as other, connect(other.url, KEY) as client:
        for call in every_call(client):
            with pytest.raises(NotFound if b"message" in body else UnexpectedAnswer, match=r"\(HTTP 404\)"):
                call()  # only who speaks of vectors can say that there is none


@pytest.mark.parametrize(
    "wrong",
    [
        {"object": "model"},
        {"revision": None},
        {"bytes": True},
        {"bytes": "1"},
        {"created_at": 10**12},
        {"created_at": -1},
        {"layers": "1"},
        {"layers": [1.5]},
        {"norms": {"one": 1}},
        {"default_scale": float("nan")},
        {"metadata": []},
        {"history": [{}]},
    ],
)
def test_a_vector_with_a_wrong_field_is_none(server: Server, connect: Connect, wrong: dict[str, Any]) -> None:
    server.store.put("right", vector(1))
    right = server.http.get("/v1/steering/vectors/right").json()
    with stranger(json.dumps(right | {"unknown": 1}).encode()) as other, connect(other.url) as client:
        assert client.get("right").revision == vector(1).revision
    other_vector = json.dumps(right | wrong).encode()
    with stranger(other_vector) as other, connect(other.url) as client, pytest.raises(UnexpectedAnswer):
        client.get("right")


def test_a_file_that_holds_no_vector_and_a_body_that_cannot_be_unpacked_are_no_answers(connect: Connect) -> None:
    kind = "application/octet-stream"
    with stranger(b"no vector", content_type=kind) as other, connect(other.url) as client:
        assert client.content("x") == b"no vector"
        with pytest.raises(UnexpectedAnswer):
            client.vector("x")
        other.headers = {"Content-Encoding": "gzip"}
        with pytest.raises(UnexpectedAnswer):
            client.content("x")


def test_a_redirect_is_not_followed(server: Server, connect: Connect) -> None:
    with stranger(b"", status=307) as other, connect(other.url, KEY) as client:
        other.headers = {"Location": server.url}
        for call in every_call(client):
            with pytest.raises(UnexpectedAnswer, match="307"):
                call()


def test_no_error_shows_the_key_whatever_the_server_says(connect: Connect) -> None:
    echo = b'{"error": {"message": "you sent KEY", "code": "KEY", "param": "KEY", "type": "x"}}'
    key = KEY.replace('"', "")
    for status in (300, 400, 401, 418, 500, 599):
        with stranger(echo, status=status, is_echo=True) as other, connect(other.url, key) as client:
            for call in every_call(client):
                with pytest.raises(Refused) as caught:
                    call()
                told = caught.value
                assert (told.status, told.message, told.code) == (status, "you sent Bearer [key]", "Bearer [key]")
                assert key not in "".join(traceback.format_exception(told)) + repr(vars(told)) + repr(client)


def test_each_status_has_its_error() -> None:
    errors = {status: type(refused(status, "said", "code", "param")) for status in range(300, 600)}
    assert {errors[status] for status in range(500, 600)} == {ServerFailure}
    assert errors[400] is InvalidRequest
    assert errors[418] is Refused
    assert issubclass(Refused, ClientError)


def test_both_clients_have_the_same_methods() -> None:
    def methods(kind: type) -> dict[str, list[inspect.Parameter]]:
        found = inspect.getmembers(kind, inspect.isfunction)
        return {
            name: list(inspect.signature(method).parameters.values())
            for name, method in found
            if not name.startswith("_") or name == "__init__"
        }

    assert methods(VectorClient) == methods(AsyncVectorClient)
    assert len(methods(VectorClient)) == len(every_call(None)) + 2  # type: ignore[arg-type]
