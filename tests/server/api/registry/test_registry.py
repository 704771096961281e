"""The registry over HTTP: every call, its preconditions, and that a refused upload leaves no trace."""

from __future__ import annotations

import base64
import errno
import io
import json
import socket
import struct
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
import safetensors.torch
import torch

from tests.server.api.serving import HIDDEN, LAYERS, Server, direction, serving, vector
from vectors.client import DamagedVector, RegisteredVector, VectorClient
from vectors.defaults import DEFAULTS
from vectors.formats import decode
from vectors.formats.safetensors import encode_safetensors
from vectors.store import VectorStore
from vectors.store.generation import Generation

PATH = "/v1/steering/vectors"
FIELDS = {
    "object", "id", "name", "revision", "created_at", "bytes", "model", "hidden_size", "layers", "site", "operation",
    "positions", "parts", "default_layers", "default_scale", "norms", "description", "metadata", "training", "rank",
    "has_read_directions", "activation", "min", "max", "threshold", "max_scale", "calibration",
}  # fmt: skip


def put(server: Server, name: str, content: bytes, **headers: str) -> httpx.Response:
    """Upload a file as it is."""
    kind = {"content-type": "application/octet-stream"}
    return server.http.put(f"{PATH}/{name}", content=content, headers=kind | headers)


def file_of(seed: int, *layers: int) -> bytes:
    """The canonical file of a random vector."""
    return encode_safetensors(vector(seed, *layers))


def error_of(response: httpx.Response) -> dict[str, Any]:
    """What an error's envelope holds."""
    assert set(response.json()) == {"error"}
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def test_a_vector_with_read_directions_is_made_from_numbers_and_capped(server: Server) -> None:
    write, read = direction(1), direction(2)
    body = {
        "name": "gated", "directions": {"1": write.tolist()}, "reads": {"1": read.tolist()}, "biases": {"1": 0.25},
        "activation": "relu", "operation": "cap", "max": 0.5,
    }  # fmt: skip
    made = server.http.post(PATH, json=body)
    assert made.status_code == 201
    told = {name: made.json()[name] for name in ("rank", "has_read_directions", "activation", "min", "max")}
    assert told == {"rank": 1, "has_read_directions": True, "activation": "relu", "min": None, "max": 0.5}
    stored = decode(server.http.get(f"{PATH}/gated/content").content)
    assert torch.equal(stored.reads[1], read)
    assert stored.biases[1].tolist() == [0.25]
    asked: dict[str, Any]
    for asked, expected in (({}, (None, 0.5)), ({"min": -1}, (-1.0, None)), ({"min": 0, "max": 2}, (0.0, 2.0))):
        answer = server.http.post(
            "/v1/completions", json={"prompt": [1, 2], "max_tokens": 1, "steering": [{"vector": "gated", **asked}]}
        ).json()
        (applied,) = answer["steering"]
        assert (applied["operation"], applied["min"], applied["max"]) == ("cap", *expected)
    for asked, param in (({"min": 3, "max": 2}, "min"), ({"operation": "add", "max": 2}, "max")):
        refused = server.http.post("/v1/completions", json={"prompt": [1], "steering": [{"vector": "gated", **asked}]})
        assert (refused.status_code, error_of(refused)["param"]) == (400, f"steering.0.{param}")
        assert error_of(refused)["code"] == "invalid_interval"
    for wrong, param in (
        ({"reads": {"2": read.tolist()}}, "reads"),
        ({"biases": {"x": 1}}, "biases.x"),
        ({"reads": {}, "biases": {"1": 1}}, "biases"),
    ):
        refused = server.http.post(PATH, json={**body, "name": "wrong", **wrong})
        assert (refused.status_code, error_of(refused)["param"]) == (400, param)
    assert server.http.delete(f"{PATH}/gated").status_code == 200


def test_an_upload_is_a_revision_and_comes_back_as_it_went(server: Server) -> None:
    content = file_of(10, 0, 1)
    first = put(server, "up", content)
    assert first.status_code == 201
    made = first.json()
    assert set(made) == FIELDS
    assert (made["object"], made["id"], made["layers"], made["hidden_size"]) == (
        "steering.vector",
        "up",
        [0, 1],
        HIDDEN,
    )
    assert first.headers["etag"] == f'"{made["revision"]}"'
    assert made["norms"]["0"] == pytest.approx(float(direction(10).norm()))
    again = put(server, "up", content)
    assert (again.status_code, again.json()["revision"]) == (200, made["revision"])
    download = server.http.get(f"{PATH}/up/content")
    assert (download.content, download.headers["etag"]) == (content, first.headers["etag"])
    copied = put(server, "up-copy", download.content)
    assert copied.json()["revision"] == made["revision"]
    newer = put(server, "up", file_of(11))
    assert newer.status_code == 200
    shown = server.http.get(f"{PATH}/up")
    assert shown.headers["etag"] == f'"{newer.json()["revision"]}"'
    assert set(shown.json()) == FIELDS | {"history"}
    assert [entry["revision"] for entry in shown.json()["history"]] == [newer.json()["revision"], made["revision"]]
    assert set(shown.json()["history"][0]) == {"revision", "created_at", "bytes"}


def test_multipart_uploads_may_say_more_about_the_file(server: Server) -> None:
    bare = io.BytesIO()
    torch.save(direction(3), bare)
    without = server.http.put(f"{PATH}/parts", files={"file": ("x.pt", bare.getvalue())})
    assert (without.status_code, error_of(without)["param"]) == (400, "layer")
    more = json.dumps({"layer": 2, "default_scale": 0.5, "description": "of parts"})
    made = server.http.put(f"{PATH}/parts", files={"file": ("x.pt", bare.getvalue())}, data={"metadata": more})
    assert made.status_code == 201
    assert (made.json()["layers"], made.json()["default_scale"], made.json()["description"]) == ([2], 0.5, "of parts")
    as_file: Any = {"file": ("x.pt", bare.getvalue()), "metadata": ("m.json", more, "application/json")}
    assert server.http.put(f"{PATH}/parts", files=as_file).json()["revision"] == made.json()["revision"]
    file = ("x.pt", bare.getvalue())
    for parts, param in (
        ([("metadata", ("m.json", more))], "file"),
        ([("file", file), ("notes", ("n", b"x"))], "notes"),
        ([("file", file), ("file", file)], "file"),
        ([("file", file), ("metadata", ("m.json", b"{"))], "metadata"),
        ([("file", file), ("metadata", ("m.json", b'{"colour": 1}'))], "colour"),
    ):
        refused = server.http.put(f"{PATH}/parts", files=parts)
        assert (refused.status_code, error_of(refused)["param"]) == (400, param)


def test_gguf_goes_out_and_in(server: Server) -> None:
    put(server, "gguf", file_of(12, 1, 2))
    download = server.http.get(f"{PATH}/gguf/content", params={"format": "gguf"})
    assert download.content[:4] == b"GGUF"
    assert put(server, "gguf-copy", download.content).json()["layers"] == [1, 2]
    wrong = server.http.get(f"{PATH}/gguf/content", params={"format": "zip"})
    assert (wrong.status_code, error_of(wrong)["param"]) == (400, "format")


def test_numbers_in_json_make_a_vector(server: Server) -> None:
    numbers = direction(5).tolist()
    encoded = base64.b64encode(struct.pack(f"<{HIDDEN}f", *numbers)).decode()
    body = {"name": "numbers", "directions": {"0": numbers, "2": encoded}, "default_scale": -2, "metadata": {"a": [1]}}
    made = server.http.post(PATH, json=body)
    assert made.status_code == 201
    assert (made.json()["layers"], made.json()["default_scale"], made.json()["metadata"]) == ([0, 2], -2.0, {"a": [1]})
    stored = server.store.get("numbers").vector
    assert torch.equal(stored.directions[0], stored.directions[2])
    taken = server.http.post(PATH, json=body)
    assert (taken.status_code, error_of(taken)["code"]) == (409, "vector_exists")
    answer = server.sdk.chat.completions.create(
        model="tiny+numbers", messages=[{"role": "user", "content": "hi"}], max_tokens=1
    )
    assert answer.steering[0]["scale"] == -2  # type: ignore[attr-defined]


def test_preconditions_hold_or_nothing_happens(server: Server) -> None:
    revision = put(server, "guarded", file_of(20)).json()["revision"]
    taken = put(server, "guarded", file_of(21), **{"If-None-Match": "*"})
    assert (taken.status_code, error_of(taken)["code"]) == (412, "precondition_failed")
    assert put(server, "guarded", file_of(21), **{"If-Match": f'"{"0" * 64}"'}).status_code == 412
    assert server.store.get("guarded").revision == revision
    newer = put(server, "guarded", file_of(21), **{"If-Match": f'"{revision}"'})
    assert newer.status_code == 200
    stale = {"If-Match": f'"{revision}"'}
    path = f"{PATH}/guarded"
    assert server.http.patch(path, json={"default_scale": 3}, headers=stale).status_code == 412
    assert server.http.post(f"{path}/rollback", json={"revision": revision}, headers=stale).status_code == 412
    assert server.http.delete(path, headers=stale).status_code == 412
    assert server.store.get("guarded").revision == newer.json()["revision"]
    assert put(server, "guarded-not", file_of(1), **{"If-Match": "*"}).status_code == 412
    assert server.store.get("guarded").revision == newer.json()["revision"]
    for name, value in (("If-Match", 'W/"x"'), ("If-Match", "abc"), ("If-None-Match", f'"{revision}"')):
        malformed = put(server, "guarded", file_of(22), **{name: value})
        assert (malformed.status_code, error_of(malformed)["param"]) == (400, name)


def test_a_precondition_that_a_call_does_not_honour_is_refused(server: Server) -> None:
    revision = put(server, "careful", file_of(23)).json()["revision"]
    path, body = f"{PATH}/careful", {"name": "careless", "directions": {"0": [1.0] * HIDDEN}}
    calls: list[tuple[str, str, Any, str]] = [
        ("PATCH", path, {"default_scale": 3}, "If-None-Match"),
        ("POST", f"{path}/rollback", {"revision": revision}, "If-None-Match"),
        ("DELETE", path, None, "If-None-Match"),
        ("POST", PATH, body, "If-None-Match"),
        ("POST", PATH, body, "If-Match"),
    ]
    before = server.http.get(PATH).json()
    for method, url, content, name in calls:
        for value in ("*", f'"{revision}"', "abc"):
            refused = server.http.request(method, url, json=content, headers={name: value})
            assert (refused.status_code, error_of(refused)["param"]) == (400, name)
    assert server.http.get(PATH).json() == before


def test_a_patch_changes_the_revision_that_it_names_and_no_other(server: Server) -> None:
    """Another client moves the name to and fro all the while."""
    one, other = file_of(24), file_of(25)
    named = put(server, "moving", one).json()
    is_over = threading.Event()

    def move() -> None:
        with httpx.Client(base_url=server.url, timeout=60) as http:
            while not is_over.is_set():
                for content in (other, one):
                    http.put(f"{PATH}/moving", content=content)

    mover = threading.Thread(target=move)
    mover.start()
    try:
        num_changed = 0
        for number in range(50):
            change, match = {"default_scale": float(number + 2)}, {"If-Match": f'"{named["revision"]}"'}
            reply = server.http.patch(f"{PATH}/moving", json=change, headers=match)
            assert reply.status_code in (200, 412)
            if reply.status_code == 200:
                num_changed += 1
                assert reply.json()["norms"] == named["norms"]
    finally:
        is_over.set()
        mover.join()
    assert num_changed > 0


def test_any_revision_can_be_downloaded(server: Server) -> None:
    files = [file_of(seed) for seed in (26, 27, 28)]
    made = [put(server, "chosen", content).json()["revision"] for content in files]
    for revision, content in zip(made, files, strict=True):
        for prefix in (revision, revision[:12]):
            download = server.http.get(f"{PATH}/chosen/content", params={"revision": prefix})
            assert (download.content, download.headers["etag"]) == (content, f'"{revision}"')
    gguf = server.http.get(f"{PATH}/chosen/content", params={"revision": made[0], "format": "gguf"})
    assert put(server, "chosen-copy", gguf.content).json()["norms"] == put(server, "chosen", files[0]).json()["norms"]
    for prefix, status in (("0" * 12, 404), ("0a", 400), ("", 400)):
        assert server.http.get(f"{PATH}/chosen/content", params={"revision": prefix}).status_code == status


def test_a_damaged_file_is_listed_as_damaged(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        for seed, name in enumerate("abc"):
            put(server, name, file_of(seed))
        lost = server.store.history("b")[0].revision
        (tmp_path / "vectors" / "objects" / f"{lost}.safetensors").write_bytes(b"lost")
        assert [model.id for model in server.sdk.models.list()] == ["tiny", "tiny+a", "tiny+b", "tiny+c"]
        assert server.sdk.models.retrieve("tiny+b").id == "tiny+b"
        first = server.http.get(PATH, params={"limit": 2}).json()
        assert ([entry["id"] for entry in first["data"]], first["last_id"], first["has_more"]) == (
            ["a", "b"],
            "b",
            True,
        )
        damaged = first["data"][1]
        assert (damaged["object"], damaged["name"], damaged["revision"]) == ("steering.vector.damaged", "b", lost)
        assert f"{lost}.safetensors is damaged" in damaged["error"]
        second = server.http.get(PATH, params={"limit": 2, "after": first["last_id"]}).json()
        assert ([entry["id"] for entry in second["data"]], second["has_more"]) == (["c"], False)
        refused = server.http.get(f"{PATH}/b")
        assert (refused.status_code, error_of(refused)["message"]) == (503, damaged["error"])
        with VectorClient(server.url) as client:
            assert [type(found) for found in client.list()] == [RegisteredVector, DamagedVector, RegisteredVector]


class FullStore(VectorStore):
    """A registry whose disk is full."""

    def _announce(self, change: int, *, needs_room: bool = True) -> Generation | None:
        if needs_room:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super()._announce(change, needs_room=needs_room)


def test_a_full_disk_is_a_507_that_changes_nothing_and_a_delete_makes_room(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        for seed, name in enumerate("ab"):
            put(server, name, file_of(seed))
        made = server.http.patch(f"{PATH}/a", json={"default_scale": 2}).json()
        first = server.store.history("a")[-1].revision
    with serving(tmp_path, store_class=FullStore) as server:
        for refused in (
            put(server, "new", file_of(3)),
            put(server, "a", file_of(3)),
            server.http.patch(f"{PATH}/a", json={"default_scale": 3}),
            server.http.post(f"{PATH}/a/rollback", json={"revision": first}),
        ):
            error = error_of(refused)
            assert (refused.status_code, error["code"], error["type"]) == (507, "disk_full", "server_error")
            assert error["message"].startswith("the disk that holds the vectors is full (No space left on device)")
        assert server.http.get(f"{PATH}/a").json()["revision"] == made["revision"]
        assert len(list((tmp_path / "vectors" / "objects").iterdir())) == 3
        assert server.http.delete(f"{PATH}/b").status_code == 200
        assert server.http.get("/ready").status_code == 200
    with serving(tmp_path) as server:
        assert put(server, "new", file_of(3)).status_code == 201


def test_defaults_change_by_patch_and_go_back_by_rollback(server: Server) -> None:
    revision = put(server, "changing", file_of(30)).json()["revision"]
    changed = server.http.patch(f"{PATH}/changing", json={"default_scale": 2.5, "positions": "all", "description": "x"})
    assert changed.status_code == 200
    assert (changed.json()["default_scale"], changed.json()["positions"]) == (2.5, "all")
    assert changed.json()["revision"] != revision
    back = server.http.post(f"{PATH}/changing/rollback", json={"revision": revision[:10]})
    assert (back.status_code, back.json()["revision"]) == (200, revision)
    assert len(server.http.get(f"{PATH}/changing").json()["history"]) == 2
    unknown = server.http.post(f"{PATH}/changing/rollback", json={"revision": "0" * 12})
    assert (unknown.status_code, error_of(unknown)["code"]) == (404, "revision_not_found")
    short = server.http.post(f"{PATH}/changing/rollback", json={"revision": "0a"})
    assert (short.status_code, error_of(short)["code"]) == (400, "invalid_revision")
    for body, param in (({}, None), ({"site": "mlp"}, "site"), ({"operation": "twist"}, "operation")):
        refused = server.http.patch(f"{PATH}/changing", json=body)
        assert (refused.status_code, error_of(refused)["param"]) == (400, param)


def test_null_puts_every_default_that_may_change_back(server: Server) -> None:
    fresh = put(server, "set", file_of(31)).json()
    given = {
        "default_scale": 2.5, "max_scale": 4.0, "operation": "cap", "positions": {"of": "prompt", "last": 4},
        "parts": ["reasoning"], "default_layers": "none", "activation": "identity", "min": -1.0, "max": 2.0,
        "threshold": 0.3, "description": "x", "metadata": {"a": 1},
    }  # fmt: skip
    assert set(given) == {row.name for row in DEFAULTS if row.is_changeable}
    changed = server.http.patch(f"{PATH}/set", json=given).json()
    assert {name: changed[name] for name in given} == given
    for name in given:
        other = server.http.patch(f"{PATH}/set", json={name: None}).json()
        assert other[name] == fresh[name]
    assert other["revision"] == fresh["revision"]


def test_a_deleted_name_is_gone_and_starts_anew(server: Server) -> None:
    put(server, "brief", file_of(40))
    put(server, "brief", file_of(41))
    gone = server.http.delete(f"{PATH}/brief")
    assert (gone.status_code, gone.json()) == (
        200,
        {"id": "brief", "object": "steering.vector.deleted", "deleted": True},
    )
    for response in (
        server.http.get(f"{PATH}/brief"),
        server.http.get(f"{PATH}/brief/content"),
        server.http.delete(f"{PATH}/brief"),
        server.http.patch(f"{PATH}/brief", json={"default_scale": 1}),
        server.http.get("/v1/models/tiny+brief"),
    ):
        assert response.status_code == 404
    put(server, "brief", file_of(40))
    assert len(server.http.get(f"{PATH}/brief").json()["history"]) == 1


def test_lists_come_in_pages_by_name(server: Server) -> None:
    for number in range(5):
        put(server, f"page-{number}", file_of(50 + number))
    names = server.store.names()
    found: list[str] = []
    after = None
    while True:
        page = server.http.get(PATH, params={"limit": 2} | ({"after": after} if after else {})).json()
        assert (page["object"], page["first_id"]) == ("list", page["data"][0]["id"])
        found += [entry["id"] for entry in page["data"]]
        after = page["last_id"]
        if not page["has_more"]:
            break
    assert found == names
    backwards = server.http.get(PATH, params={"order": "desc", "limit": 3}).json()
    assert [entry["id"] for entry in backwards["data"]] == names[::-1][:3]
    empty = server.http.get(PATH, params={"after": "zzz"}).json()
    assert (empty["data"], empty["first_id"], empty["last_id"], empty["has_more"]) == ([], None, None, False)
    for params in ({"limit": "0"}, {"limit": "x"}, {"order": "up"}, {"offset": "2"}):
        refused = server.http.get(PATH, params=params)
        assert (refused.status_code, error_of(refused)["param"]) == (400, next(iter(params)))


def test_models_list_every_vector(server: Server) -> None:
    put(server, "listed", file_of(60))
    wide = safetensors.torch.save({"residual.0": torch.ones(HIDDEN + 1)})
    assert put(server, "wide", wide).status_code == 400
    ids = [model.id for model in server.sdk.models.list()]
    assert ids[0] == "tiny"
    assert ids[1:] == [f"tiny+{name}" for name in server.store.names()]
    assert server.sdk.models.retrieve("tiny+listed").id == "tiny+listed"
    assert server.sdk.models.retrieve("tiny").id == "tiny"


def test_a_body_announced_too_large_is_refused_unread(server: Server) -> None:
    before = server.store.names()
    head = f"PUT {PATH}/huge HTTP/1.1\r\nHost: localhost\r\nContent-Length: {1 << 40}\r\n\r\n"
    assert b" 413 " in exchange(server, head.encode()).split(b"\r\n")[0]
    assert server.store.names() == before


def test_a_chunked_body_is_cut_off_where_it_becomes_too_large(server: Server) -> None:
    sent = 0

    def endless() -> Any:
        nonlocal sent
        while sent < 64:
            sent += 1
            yield b"x" * 65536

    response = server.http.put(f"{PATH}/huge", content=endless())
    assert (response.status_code, error_of(response)["code"]) == (413, "payload_too_large")
    multipart = server.http.put(f"{PATH}/huge", files={"file": b"x" * (300 << 10)})
    assert (multipart.status_code, error_of(multipart)["code"]) == (413, "payload_too_large")
    assert "huge" not in server.store.names()


def test_an_interrupted_upload_leaves_the_registry_as_it_was(server: Server) -> None:
    before = server.store.names()
    content = file_of(70)
    head = f"PUT {PATH}/half HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n"
    assert exchange(server, head.encode() + content[:-1], half_close=True) == b""
    assert server.store.names() == before


def exchange(server: Server, request: bytes, *, half_close: bool = False) -> bytes:
    """Send raw bytes and read the answer, if one comes before the server closes; `half_close`: no more is sent."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(request)
        if half_close:
            connection.shutdown(socket.SHUT_WR)
        return connection.recv(65536)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"hello", "unknown file format: expected one of"),
        (file_of(1)[:-3], "damaged"),
        (file_of(1)[:40], "header"),
        (safetensors.torch.save({"residual.0": torch.full((HIDDEN,), float("nan"))}), "NaN"),
        (safetensors.torch.save({"residual.0": torch.full((HIDDEN,), float("inf"))}), "infinity"),
        (safetensors.torch.save({"residual.0": torch.zeros(HIDDEN)}), "zero"),
        (safetensors.torch.save({"residual.0": torch.ones(HIDDEN - 1)}), "hidden size"),
        (safetensors.torch.save({"residual.3": torch.ones(HIDDEN)}), "outside the model"),
        (safetensors.torch.save({"nowhere.0": torch.ones(HIDDEN), "b": torch.ones(HIDDEN)}), "nowhere.0"),
        (safetensors.torch.save({"residual.0": torch.ones(HIDDEN), "mlp.0": torch.ones(HIDDEN)}), "one site"),
        (safetensors.torch.save({"residual.0": torch.ones(1, HIDDEN)}), "shape"),
        (safetensors.torch.save({"residual.0": torch.ones(HIDDEN, dtype=torch.float64)}), "float64"),
        (safetensors.torch.save({"residual.0": torch.ones(HIDDEN)}, {"steering_vector": "{"}), "JSON"),
        (safetensors.torch.save({"residual.0": torch.ones(HIDDEN)}, {"steering_vector": '{"scale": 1}'}), "scale"),
    ],
)
def test_a_bad_file_is_refused_saying_why(server: Server, content: bytes, words: str) -> None:
    before = server.store.names()
    response = put(server, "bad", content)
    assert (response.status_code, error_of(response)["code"]) == (400, "invalid_vector")
    assert words in error_of(response)["message"]
    assert server.store.names() == before


@pytest.mark.parametrize("name", ["..", ".hidden", "a b", "a%2Fb", "%2e%2e%2fetc", "é", "x" * 65, "a+b", "a@b", "a:b"])
def test_names_are_names_and_never_paths(server: Server, name: str) -> None:
    before = server.store.names()
    response = put(server, name, file_of(1))
    assert response.status_code in (400, 404, 405)
    error_of(response)
    assert server.store.names() == before


@pytest.mark.parametrize(
    ("directions", "param"),
    [
        ({}, "directions"),
        ({"0": []}, "directions.0"),
        ({"0": [1.0]}, "directions.0"),
        ({"0": [1.0] * (HIDDEN + 1)}, "directions.0"),
        ({str(layer): [1.0] * HIDDEN for layer in range(LAYERS + 1)}, "directions"),
        ({"0": ["1"] * HIDDEN}, "directions.0"),
        ({"0": [True] * HIDDEN}, "directions.0"),
        ({"0": [1e300] * HIDDEN}, "residual.0"),
        ({"0": [10**400] * HIDDEN}, "directions.0"),
        ({"0": "not base64!"}, "directions.0"),
        ({"0": "AAAA"}, "directions.0"),
        ({"0": "A" * 172}, "directions.0"),
        ({"0": "!" * 172}, "directions.0"),
        ({"zero": [1.0] * HIDDEN}, "directions.zero"),
        ({"-1": [1.0] * HIDDEN}, "directions.-1"),
        ({"7": [1.0] * HIDDEN}, "residual.7"),
        ({"1": [1.0] * HIDDEN, "01": [1.0] * HIDDEN}, "directions.01"),
    ],
)
def test_bad_numbers_are_refused_by_place(server: Server, directions: dict[str, Any], param: str | None) -> None:
    response = server.http.post(PATH, json={"name": "bad-numbers", "directions": directions})
    assert (response.status_code, error_of(response)["param"]) == (400, param)
