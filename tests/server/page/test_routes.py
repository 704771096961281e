"""The files of the page: how they are served, and that nothing in them could reach elsewhere."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.keys import ApiKeys
from server.page.routes import FILES
from tests.server.api.serving import Server, serving, vector
from tests.shared_files import ROOT

NAMES = sorted(path.name for path in FILES.iterdir())
SCRIPTS = {name: (FILES / name).read_text(encoding="utf-8") for name in NAMES if name.endswith(".js")}
TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".html": "text/html"}
MAKES_HTML = (
    r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|createContextualFragment|\beval\b|new Function"
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """An open server of the tiny model."""
    with serving(tmp_path_factory.mktemp("data")) as running:
        yield running


def address_of(name: str) -> str:
    return "/" if name == "index.html" else f"/page/{name}"


@pytest.mark.parametrize("name", NAMES)
def test_every_file_is_served_with_its_type_and_policy(server: Server, name: str) -> None:
    answer = server.http.get(address_of(name))
    assert answer.content == (FILES / name).read_bytes()
    assert answer.headers["content-type"] == f"{TYPES[Path(name).suffix]}; charset=utf-8"
    assert answer.headers["cache-control"] == "no-cache"
    policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
    assert policy == {
        "default-src": "'none'", "script-src": "'self'", "style-src": "'self'", "connect-src": "'self'",
        "img-src": "'self' blob:", "base-uri": "'none'", "form-action": "'none'", "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'", "trusted-types": "'none'",
    }  # fmt: skip
    known = server.http.get(address_of(name), headers={"If-None-Match": f'"0", W/{answer.headers["etag"]}'})
    assert (known.status_code, known.content, known.headers["etag"]) == (304, b"", answer.headers["etag"])
    assert server.http.head(address_of(name)).headers["content-length"] == str(len(answer.content))


@pytest.mark.parametrize(
    "name", ["nothing.js", "index.html", "routes.py", "..%2Froutes.py", "%2Fetc%2Fpasswd", "a%00.js"]
)
def test_what_is_not_in_the_list_is_not_there(server: Server, name: str) -> None:
    assert server.http.get(f"/page/{name}").status_code == 404


def test_modules_import_what_is_there_and_all_of_it_is_used() -> None:
    imported = {name for text in SCRIPTS.values() for name in re.findall(r'from "\./([\w.]+)"', text)}
    assert imported | {"app.js"} == set(SCRIPTS)


def test_the_files_name_no_other_server_and_make_no_html_of_text() -> None:
    for name in NAMES:
        text = (FILES / name).read_text(encoding="utf-8")
        assert set(re.findall(r"https?://[\w./]+", text)) <= {"http://www.w3.org/2000/svg"}, name
        assert not re.search(MAKES_HTML, text), name
    index = (FILES / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]* src=)", index)


def test_every_word_is_in_one_file_and_used() -> None:
    words = SCRIPTS["strings.js"]
    declared = set(re.findall(r"^  (\w+):", words, re.MULTILINE))
    used = {name for text in SCRIPTS.values() for name in re.findall(r"\bT\.(\w+)", text)}
    assert used == declared


def test_the_page_is_small_and_an_installed_package_has_it() -> None:
    assert sum((FILES / name).stat().st_size for name in NAMES) < 300 * 1024
    data = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["package-data"]
    assert f"{FILES.relative_to(ROOT / 'server').as_posix()}/*" in data["server"]


def test_it_needs_no_key_and_tells_nothing_of_what_is_served(tmp_path: Path) -> None:
    with serving(tmp_path, keys=ApiKeys(use=["secret-key"])) as locked:
        locked.store.put("confidential", vector(1))
        for name in NAMES:
            answer = locked.http.get(address_of(name))
            assert answer.status_code == 200
            assert "confidential" not in answer.text


def test_it_can_be_switched_off(tmp_path: Path) -> None:
    with serving(tmp_path, no_page=True) as without:
        assert {without.http.get(address_of(name)).status_code for name in NAMES} == {404}
