"""The Files API: the official client's every method, and that no upload can do more than be kept or be refused."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from server.keys import ApiKeys
from tests.server.api.serving import Server, serving
from tests.server.jobs.trainers import DATA, GatedTrainer, PairTrainer

PATH = "/v1/files"
FIELDS = {"id", "object", "bytes", "created_at", "expires_at", "filename", "purpose", "status", "status_details"}
LIMIT_MIB = 0.5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    """A server that trains; tests leave no file behind where they count them."""
    with serving(folder, trainer=PairTrainer(), max_upload_mib=LIMIT_MIB) as running:
        yield running


def error_of(response: httpx.Response) -> dict[str, Any]:
    """What an error's envelope holds."""
    assert set(response.json()) == {"error"}
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def upload(server: Server, name: str = "quiz.jsonl", content: bytes = DATA) -> str:
    """The id of an uploaded file."""
    return server.sdk.files.create(file=(name, content), purpose="fine-tune").id


def test_every_method_of_the_official_client(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "données.jsonl"
    path.write_bytes(DATA)
    with path.open("rb") as opened:
        made = server.sdk.files.create(file=opened, purpose="fine-tune")
    assert (made.object, made.filename, made.bytes, made.purpose) == ("file", "données.jsonl", len(DATA), "fine-tune")
    assert made.status == "processed"
    assert server.sdk.files.retrieve(made.id) == made
    assert server.sdk.files.wait_for_processing(made.id) == made
    assert server.sdk.files.content(made.id).read() == DATA
    assert made in list(server.sdk.files.list())
    deleted = server.sdk.files.delete(made.id)
    assert (deleted.id, deleted.object, deleted.deleted) == (made.id, "file", True)
    for call in (server.sdk.files.retrieve, server.sdk.files.content, server.sdk.files.delete):
        with pytest.raises(openai.NotFoundError) as missing:
            call(made.id)
        assert missing.value.code == "file_not_found"
    assert set(server.http.get(f"{PATH}/{upload(server)}").json()) == FIELDS


def test_lists_come_in_pages_newest_first(server: Server) -> None:
    for file in server.sdk.files.list():
        server.sdk.files.delete(file.id)
    ids = [upload(server, f"{number}.jsonl") for number in range(5)]
    assert [file.id for file in server.sdk.files.list(limit=2)] == ids[::-1], "the client follows the pages"
    page = server.http.get(PATH, params={"limit": 2, "order": "asc"}).json()
    assert (page["object"], page["first_id"], page["last_id"], page["has_more"]) == ("list", ids[0], ids[1], True)
    last = server.http.get(PATH, params={"limit": 3, "order": "asc", "after": ids[1]}).json()
    assert ([file["id"] for file in last["data"]], last["has_more"]) == (ids[2:], False)
    assert server.sdk.files.list(purpose="fine-tune-results").data == []
    assert len(server.sdk.files.list(purpose="fine-tune").data) == 5
    for file in server.sdk.files.list(limit=2):
        server.sdk.files.delete(file.id)
    empty = server.http.get(PATH).json()
    assert (empty["data"], empty["first_id"], empty["last_id"], empty["has_more"]) == ([], None, None, False)


@pytest.mark.parametrize(
    ("params", "param"),
    [
        ({"limit": "0"}, "limit"),
        ({"limit": "10001"}, "limit"),
        ({"limit": "x"}, "limit"),
        ({"limit": "１"}, "limit"),
        ({"order": "up"}, "order"),
        ({"after": "x"}, "after"),
        ({"after": "ftjob-" + "0" * 24}, "after"),
        ({"purpose": "love"}, "purpose"),
        ({"offset": "1"}, "offset"),
        ([("limit", "1"), ("limit", "2")], "limit"),
    ],
)
def test_a_list_is_asked_for_properly_or_refused(server: Server, params: Any, param: str) -> None:
    refused = server.http.get(PATH, params=params)
    assert (refused.status_code, error_of(refused)["param"]) == (400, param)


FILE = ("quiz.jsonl", DATA)
UPLOADS: dict[str, tuple[list[tuple[str, Any]], dict[str, str], str | None, str]] = {
    "no file": ([], {"purpose": "fine-tune"}, "file", "missing_required_parameter"),
    "no purpose": ([("file", FILE)], {}, "purpose", "missing_required_parameter"),
    "another purpose": ([("file", FILE)], {"purpose": "batch"}, "purpose", "unsupported_parameter"),
    "results": ([("file", FILE)], {"purpose": "fine-tune-results"}, "purpose", "unsupported_parameter"),
    "no such purpose": ([("file", FILE)], {"purpose": "love"}, "purpose", "invalid_value"),
    "purpose as file": ([("file", FILE), ("purpose", FILE)], {}, "purpose", "missing_required_parameter"),
    "two files": ([("file", FILE), ("file", FILE)], {"purpose": "fine-tune"}, "file", "invalid_value"),
    "another part": ([("file", FILE)], {"purpose": "fine-tune", "colour": "x"}, "colour", "unknown_parameter"),
    "expiry": (
        [("file", FILE)],
        {"purpose": "fine-tune", "expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"},
        "expires_after",
        "unsupported_parameter",
    ),
    "an empty file": ([("file", ("a.jsonl", b""))], {"purpose": "fine-tune"}, "file", "invalid_value"),
    "many files": ([("file", FILE)] * 5, {"purpose": "fine-tune"}, None, "invalid_multipart"),
}


@pytest.mark.parametrize("case", UPLOADS)
def test_an_upload_that_asks_for_something_else_is_refused_by_name(server: Server, folder: Path, case: str) -> None:
    files, data, param, code = UPLOADS[case]
    before = set((folder / "files").iterdir())
    refused = server.http.post(PATH, files=files or {"": b""} if files else None, data=data)
    if not files:
        boundary = 'multipart/form-data; boundary="b"'
        body = b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n--b--\r\n'
        refused = server.http.post(PATH, content=body, headers={"content-type": boundary})
    assert refused.status_code == 400
    assert (error_of(refused)["param"], error_of(refused)["code"]) == (param, code)
    assert set((folder / "files").iterdir()) == before


def test_the_client_hears_that_files_do_not_expire(server: Server) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        server.sdk.files.create(file=FILE, purpose="fine-tune", expires_after={"anchor": "created_at", "seconds": 3600})
    assert refused.value.param == "expires_after"


def part(header: bytes, content: bytes = DATA) -> bytes:
    """A multipart body with a purpose and a file whose Content-Disposition goes on like this."""
    return (
        b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n'
        b'--b\r\nContent-Disposition: form-data; name="file"; ' + header + b"\r\n\r\n" + content + b"\r\n--b--\r\n"
    )


@pytest.mark.parametrize(
    ("header", "filename"),
    [
        (b'filename="../../../etc/passwd"', "../../../etc/passwd"),
        (b'filename="/etc/passwd"', "/etc/passwd"),
        (b'filename=".."', ".."),
        (b'filename="a.jsonl; rm -rf /"', "a.jsonl; rm -rf /"),
        (b'filename="<script>alert(1)</script>"', "<script>alert(1)</script>"),
        (b'filename="a\\"; x=\\"b"', 'a"; x="b'),
        ('filename="数据 ✓.jsonl"'.encode(), "数据 ✓.jsonl"),
        (b'filename="%2e%2e%2fetc"', "%2e%2e%2fetc"),
        (b'filename="' + b"x" * 400 + b'.csv"', "x" * 251 + ".csv"),
        (b'filename="a\0b"', None),
        (b'filename="a\x1bb"', None),
        (b'filename="a\xed\xa0\x80b"', None),
        (b'filename="a\xe2\x80\xa8b"', None),
        (b'filename=""', None),
        (b'filename="  "', None),
    ],
)
def test_a_hostile_name_is_text_or_refused(server: Server, folder: Path, header: bytes, filename: str | None) -> None:
    before = set(folder.rglob("*"))
    headers = {"content-type": "multipart/form-data; boundary=b"}
    response = server.http.post(PATH, content=part(header), headers=headers)
    if filename is None:
        assert response.status_code == 400
        assert set(folder.rglob("*")) == before
        return
    made = response.json()
    assert (response.status_code, made["filename"]) == (200, filename)
    assert set(folder.rglob("*")) - before == {folder / "files" / made["id"]}
    download = server.http.get(f"{PATH}/{made['id']}/content")
    assert (download.content, download.headers["content-type"]) == (DATA, "application/octet-stream")
    assert download.headers["content-disposition"].startswith("attachment; filename")
    assert server.http.get(PATH).status_code == 200


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("application/json", json.dumps({"file": "x", "purpose": "fine-tune"}).encode()),
        ("application/octet-stream", DATA),
        ("multipart/form-data", part(b'filename="a"')),
        ("multipart/form-data; boundary=other", part(b'filename="a"')),
        ("multipart/form-data; boundary=b; charset=utf-16", part(b'filename="a"')),
        ("multipart/form-data; boundary=b", part(b'filename="a"')[:-8]),
        ("multipart/form-data; boundary=b", b""),
        ("multipart/form-data; boundary=b", b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--\r\n"),
        (f"multipart/form-data; boundary={'b' * 300}", part(b'filename="a"')),
        ("", part(b'filename="a"')),
    ],
)
def test_a_body_that_is_no_form_is_refused(server: Server, folder: Path, kind: str, body: bytes) -> None:
    before = set((folder / "files").iterdir())
    response = server.http.post(PATH, content=body, headers={"content-type": kind})
    assert response.status_code == 400
    error_of(response)
    assert set((folder / "files").iterdir()) == before


def exchange(server: Server, request: bytes, *, half_close: bool = False) -> bytes:
    """Send raw bytes and read the answer, if one comes before the server closes."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(request)
        if half_close:
            connection.shutdown(socket.SHUT_WR)
        return connection.recv(65536)


def test_an_upload_that_is_too_large_is_refused_unread(server: Server, folder: Path) -> None:
    before = set((folder / "files").iterdir())
    head = (
        f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {1 << 40}\r\n"
        "Content-Type: multipart/form-data; boundary=b\r\n\r\n"
    )
    assert b" 413 " in exchange(server, head.encode()).split(b"\r\n")[0]
    content = b"x" * int((LIMIT_MIB + 0.1) * 2**20)

    def in_chunks() -> Iterator[bytes]:
        yield part(b'filename="a"', content)[:1000]
        for start in range(0, len(content), 65536):
            yield content[start : start + 65536]

    headers = {"content-type": "multipart/form-data; boundary=b"}
    for response in (
        server.http.post(PATH, content=in_chunks(), headers=headers),
        server.http.post(PATH, files={"file": ("a", content)}, data={"purpose": "fine-tune"}),
    ):
        assert (response.status_code, error_of(response)["code"]) == (413, "payload_too_large")
    assert set((folder / "files").iterdir()) == before


def test_an_interrupted_upload_leaves_nothing(server: Server, folder: Path) -> None:
    before = set((folder / "files").iterdir())
    body = part(b'filename="a"')
    head = (
        f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
        "Content-Type: multipart/form-data; boundary=b\r\n\r\n"
    )
    assert exchange(server, head.encode() + body[:-20], half_close=True) == b""
    assert set((folder / "files").iterdir()) == before


@pytest.mark.parametrize("identifier", ["..", "%2e%2e", "..%2fjobs.sqlite", "jobs.sqlite", "file-", "x" * 3000, "%00"])
def test_ids_are_ids_and_never_paths(server: Server, identifier: str) -> None:
    for method, path in (("GET", identifier), ("GET", f"{identifier}/content"), ("DELETE", identifier)):
        response = server.http.request(method, f"{PATH}/{path}")
        assert response.status_code in (404, 405)
        error_of(response)


def test_a_file_that_a_job_needs_is_kept(tmp_path: Path) -> None:
    trainer = GatedTrainer()
    with serving(tmp_path, trainer=trainer) as server:
        file = upload(server)
        job = server.sdk.fine_tuning.jobs.create(model="tiny", training_file=file)
        with pytest.raises(openai.ConflictError) as conflict:
            server.sdk.files.delete(file)
        assert conflict.value.code == "file_in_use"
        trainer.gate.set()
        server.jobs.wait(job.id, timeout=60)
        assert server.sdk.files.delete(file).deleted
        for result in server.sdk.fine_tuning.jobs.retrieve(job.id).result_files:
            assert server.sdk.files.delete(result).deleted


CALLS = [
    ("POST", PATH),
    ("GET", PATH),
    ("GET", f"{PATH}/FILE"),
    ("GET", f"{PATH}/FILE/content"),
    ("DELETE", f"{PATH}/FILE"),
]


def test_only_keys_that_manage_may_read_or_change(tmp_path: Path) -> None:
    with serving(tmp_path, trainer=PairTrainer(), keys=ApiKeys(use=["use"], manage=["manage"])) as server:
        file = server.jobs.files.put("a.jsonl", "fine-tune", DATA).id
        for method, path in CALLS:
            for key, status in ((None, 401), ("wrong", 401), ("use", 403)):
                headers = {} if key is None else {"Authorization": f"Bearer {key}"}
                reply = server.http.request(method, path.replace("FILE", file), headers=headers)
                assert reply.status_code == status, (method, path, key)
        assert [record.id for record in server.jobs.files.list()] == [file]
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="manage", max_retries=0) as client:
            assert client.files.delete(client.files.create(file=FILE, purpose="fine-tune").id).deleted


def test_without_training_there_are_no_files(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        for method, path in CALLS:
            reply = server.http.request(method, path)
            assert (reply.status_code, error_of(reply)["code"]) == (503, "training_not_available")
