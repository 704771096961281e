"""Fifty hostile or broken uploads over HTTP: each a 4xx that says why, and the registry as it was."""

from __future__ import annotations

import io
import os
import pickle
import struct
import sys
import zipfile
from pathlib import Path

import httpx
import pytest
import torch
from safetensors.torch import save

from tests.server.api.serving import HIDDEN, LAYERS, Server, direction, eventually, vector
from tests.vectors.formats.pickles import archive, number, saved
from vectors.formats.gguf import encode_gguf
from vectors.formats.safetensors import encode_safetensors
from vectors.vector import SteeringVector

PATH = "/v1/steering/vectors"
SAFETENSORS = encode_safetensors(vector(1, 0, 1, 2))
GGUF = encode_gguf(SteeringVector({1: direction(1), 2: direction(2)}))
PT = saved(torch.stack([direction(layer) for layer in range(LAYERS)]))
MARK = Path("hacked-by-a-vector")


class RunsCode:
    """Pickles to a call of `os.system`."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {MARK}",)


def zipped(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """A zip file of these members."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return buffer.getvalue()


def patched(data: bytes, offset: int, content: bytes) -> bytes:
    """`data` with some bytes replaced."""
    return data[:offset] + content + data[offset + len(content) :]


def header(text: str) -> bytes:
    """A safetensors file with this header and eight bytes of content."""
    return struct.pack("<Q", len(text)) + text.encode() + bytes(8)


NESTED: object = []
for _ in range(200):
    NESTED = [NESTED]

UPLOADS: dict[str, bytes] = {
    **{f"safetensors cut at {length}": SAFETENSORS[:length] for length in (1, 7, 9, 60, len(SAFETENSORS) - 1)},
    **{f"gguf cut at {length}": GGUF[:length] for length in (4, 12, 40, 150, len(GGUF) - 33)},
    **{f"pt cut at {length}": PT[:length] for length in (4, 100, len(PT) // 2, len(PT) - 10, len(PT) - 1)},
    "empty": b"",
    "text": b"this is no vector",
    "zeros": bytes(4096),
    "json": b'{"residual.0": [1, 2, 3]}',
    "header longer than any file": struct.pack("<Q", 2**63) + b"{}",
    "header that is a list": header("[1]"),
    "header with a tensor beyond the end": header('{"residual.0":{"dtype":"F32","shape":[32],"data_offsets":[0,128]}}'),
    "header with overlapping tensors": header(
        '{"residual.0":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
        '"residual.1":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    ),
    "no tensors": header("{}")[:-8],
    "NaN": save({"residual.0": torch.full((HIDDEN,), torch.nan)}),
    "infinity": save({"residual.0": torch.full((HIDDEN,), torch.inf)}),
    "one NaN": save({"residual.0": torch.cat([torch.ones(HIDDEN - 1), torch.tensor([torch.nan])])}),
    "zero direction": save({"residual.0": torch.zeros(HIDDEN)}),
    "wrong width": save({"residual.0": torch.ones(HIDDEN * 2)}),
    "two widths": save({"residual.0": torch.ones(HIDDEN), "residual.1": torch.ones(HIDDEN + 1)}),
    "layer out of range": save({f"residual.{LAYERS}": torch.ones(HIDDEN)}),
    "layer far out of range": save({"residual.99999999": torch.ones(HIDDEN)}),
    "path as a tensor's name": save({"../../etc/passwd": torch.ones(HIDDEN)}),
    "integers": save({"residual.0": torch.ones(HIDDEN, dtype=torch.int32)}),
    "scalar": save({"residual.0": torch.tensor(1.0)}),
    "unknown field": save({"residual.0": torch.ones(HIDDEN)}, {"steering_vector": '{"strength": 2}'}),
    "scale that is text": save({"residual.0": torch.ones(HIDDEN)}, {"steering_vector": '{"default_scale": "2"}'}),
    "gguf with 2^60 tensors": patched(GGUF, 8, struct.pack("<Q", 2**60)),
    "gguf with 2^60 fields": patched(GGUF, 16, struct.pack("<Q", 2**60)),
    "gguf with a name of 2^60 bytes": patched(GGUF, 24, struct.pack("<Q", 2**60)),
    "gguf of version 99": patched(GGUF, 4, struct.pack("<I", 99)),
    "gguf of a language model": GGUF.replace(b"direction.", b"attn_q_wt."),
    "bare pickle": pickle.dumps({"0": [1.0] * HIDDEN}),
    "bare pickle that runs code": pickle.dumps(RunsCode()),
    "archive that runs code": saved(RunsCode()),
    "archive that hides code in a dict": saved({0: direction(1), "x": RunsCode()}),
    "archive that names builtins": archive(b"cbuiltins\neval\n(X\x01\x00\x00\x001tR"),
    "archive with code beside": archive(b"N", extra={"archive/code/hack.py": b"import os"}),
    "zip bomb": zipped({"archive/data.pkl": bytes(50_000_000)}, zipfile.ZIP_DEFLATED),
    "zip without a pickle": zipped({"readme.txt": b"hello"}),
    "zip of paths": zipped({"../../data.pkl": b"\x80\x02N."}),
    "pickle bomb of nested lists": saved(NESTED),
    "pickle bomb of doubled tuples": archive(b")q\x00" + b"(h\x00h\x00h\x00h\x00tq\x00" * 10_000),
    "pickle bomb of memos": archive(b"N" + b"".join(b"r" + struct.pack("<I", 80_000 * i) for i in range(50_000))),
    "pickle bomb of equal hashes": archive(
        b"}(" + b"".join(number(7 + step * sys.hash_info.modulus) + b"N" for step in range(20_000)) + b"u"
    ),
    "giant strided tensor": saved(torch.ones(1).expand(2**40)),
    "giant strided matrix": saved(torch.ones(1, HIDDEN).expand(2**33, HIDDEN)),
    "whole numbers": saved(torch.ones(LAYERS, HIDDEN, dtype=torch.int64)),
    "a module's parameters": saved({"weight": torch.ones(HIDDEN)}),
    "one direction and does not say its layer": saved(torch.ones(HIDDEN)),
    "ten times the limit": bytes(10 * (256 << 10)),
}


def registry(server: Server) -> object:
    """Everything that the registry says of itself."""
    return server.http.get(PATH).json()


def error_of(response: httpx.Response) -> dict[str, str]:
    """The envelope."""
    error: dict[str, str] = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return error


def test_there_are_fifty() -> None:
    assert len(UPLOADS) >= 50


@pytest.mark.parametrize("what", UPLOADS)
def test_an_upload_is_refused_and_changes_nothing(server: Server, what: str) -> None:
    before = registry(server)
    for name in ("broken", "calm"):
        response = server.http.put(f"{PATH}/{name}", content=UPLOADS[what])
        error = error_of(response)
        expected = (413, "payload_too_large") if what == "ten times the limit" else (400, "invalid_vector")
        assert (response.status_code, error["code"]) == expected, error
        assert len(error["message"]) > 10
        assert "Traceback" not in response.text
    assert registry(server) == before
    assert not MARK.exists()
    eventually(server.is_idle)


def multipart(metadata: bytes, name: bytes = b"metadata") -> bytes:
    """A form with a good file and this part."""
    parts = [
        b'Content-Disposition: form-data; name="file"; filename="x"\r\n\r\n' + SAFETENSORS,
        b'Content-Disposition: form-data; name="' + name + b'"\r\n\r\n' + metadata,
    ]
    return b"".join(b"--b\r\n" + part + b"\r\n" for part in parts) + b"--b--\r\n"


@pytest.mark.parametrize(
    "charset", ["unicode_escape", "undefined", "utf-16", "latin-1", "utf-7", "idna", "rot13", "nonsense", ""]
)
@pytest.mark.parametrize(("metadata", "name"), [(b"{}", b"\\ud800"), (b"\\ud800", b"metadata"), (b"{}", b"metadata")])
def test_a_form_in_any_charset_but_utf8_is_refused(server: Server, charset: str, metadata: bytes, name: bytes) -> None:
    before = registry(server)
    kind = {"content-type": f"multipart/form-data; boundary=b; charset={charset}"}
    response = server.http.put(f"{PATH}/calm", content=multipart(metadata, name), headers=kind)
    assert (response.status_code, error_of(response)["param"]) == (400, "Content-Type")
    assert registry(server) == before


@pytest.mark.parametrize("charset", ["", "; charset=utf-8", '; charset="UTF-8"'])
def test_a_form_in_utf8_is_read(server: Server, charset: str) -> None:
    kind = {"content-type": f"multipart/form-data; boundary=b{charset}"}
    body = multipart('{"description": "é😀"}'.encode())
    response = server.http.put(f"{PATH}/form", content=body, headers=kind)
    assert (response.status_code, response.json()["description"]) in ((201, "é😀"), (200, "é😀"))
    assert server.http.delete(f"{PATH}/form").status_code == 200


@pytest.mark.parametrize(
    "kind", ["multipart/form-data", "multipart/form-data; boundary=", "multipart/form-data; boundary=other"]
)
def test_a_form_without_its_boundary_is_refused(server: Server, kind: str) -> None:
    response = server.http.put(f"{PATH}/calm", content=multipart(b"{}"), headers={"content-type": kind})
    assert (response.status_code, error_of(response)["code"]) == (400, "invalid_multipart")
