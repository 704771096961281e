"""The command line's shape: help, version, what it imports, and how expected failures look."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from server import __version__
from server.config import options
from tests.server.cli.running import ROOT, environment, tiller


def test_help_names_every_command() -> None:
    shown = tiller("--help")
    assert shown.returncode == 0
    for command in ("serve", "chat", "vectors"):
        assert f"    {command} " in shown.stdout


def test_help_of_serve_names_every_setting_with_its_variable() -> None:
    shown = " ".join(tiller("serve", "--help").stdout.split())
    for option in options():
        assert option.flag in shown
        assert option.variable in shown
        assert option.help in shown


def test_version() -> None:
    shown = tiller("--version")
    assert (shown.returncode, shown.stdout) == (0, f"tiller {__version__}\n")


@pytest.mark.parametrize("arguments", [[], ["sing"], ["vectors"], ["serve", "--prt", "1"], ["vectors", "put", "a"]])
def test_what_cannot_be_understood_is_a_usage_error(arguments: list[str]) -> None:
    shown = tiller(*arguments)
    assert shown.returncode == 2
    assert "usage: tiller" in shown.stderr


def test_clients_load_no_tensor_library() -> None:
    code = (
        "import sys; from server.cli import main\n"
        "assert main(['vectors', 'list', '--url', 'http://127.0.0.1:1'], {}) == 1\n"
        "assert main(['chat', '--url', 'http://127.0.0.1:1'], {}) == 1\n"
        "assert main(['serve', '--port', 'x'], {}) == 2\n"
        "print([name for name in ('torch', 'transformers', 'fastapi', 'uvicorn') if name in sys.modules])"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment(), capture_output=True, encoding="utf-8", check=False
    )
    assert shown.stdout == "[]\n", shown.stderr


@pytest.fixture
def taken_port() -> Iterator[int]:
    """A port on which somebody else listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def assert_one_line(shown: subprocess.CompletedProcess[str], code: int, *said: str) -> None:
    assert shown.returncode == code, shown.stderr
    assert shown.stdout == ""
    assert shown.stderr.startswith("tiller: ")
    assert shown.stderr.count("\n") == 1, shown.stderr
    for text in said:
        assert text in shown.stderr


def test_a_bad_flag_is_named() -> None:
    assert_one_line(tiller("serve", "--max-running", "0"), 2, "--max-running: must be from 1")


def test_a_bad_variable_is_named() -> None:
    environ = {"TILLER_KV_CACHE_GIB": "lots"}
    assert_one_line(tiller("serve", environ=environ), 2, "TILLER_KV_CACHE_GIB: must be a number", "'lots'")


def test_a_public_address_needs_keys() -> None:
    assert_one_line(tiller("serve", "--host", "0.0.0.0"), 2, "TILLER_API_KEYS", "--insecure")


def test_an_unusable_key_file_is_named(tmp_path: Path) -> None:
    shown = tiller("serve", "--api-key-file", tmp_path / "none")
    assert_one_line(shown, 2, "--api-key-file", "No such file")


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    assert_one_line(tiller("serve", tmp_path / "none"), 2, "none: there is no such folder")


def test_a_file_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert_one_line(tiller("serve", tmp_path / "model.safetensors"), 2, "is a file, not the folder of a model")


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    data_dir = tmp_path / "data"
    shown = tiller("serve", tmp_path / "empty", "--port", "0", "--data-dir", data_dir, "--log-level", "error")
    assert_one_line(shown, 1, "empty: transformers cannot load it")


def test_a_port_in_use_is_named_before_anything_is_loaded(tmp_path: Path, taken_port: int) -> None:
    (tmp_path / "model").mkdir()  # loading this would fail in another way
    shown = tiller("serve", tmp_path / "model", "--port", str(taken_port), "--data-dir", tmp_path)
    assert_one_line(shown, 1, f"port {taken_port} on 127.0.0.1 is in use", "--port 0")


def test_an_address_that_is_not_ours_is_named(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    shown = tiller("serve", tmp_path / "model", "--host", "192.0.2.1", "--insecure", "--data-dir", tmp_path)
    assert_one_line(shown, 1, "cannot listen on 192.0.2.1")


def test_an_unwritable_data_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "file").write_text("", encoding="utf-8")
    shown = tiller("serve", tmp_path / "model", "--port", "0", "--data-dir", tmp_path / "file")
    assert_one_line(shown, 1, str(tmp_path / "file"))


@pytest.mark.parametrize(
    ("url", "code", "said"),
    [
        ("http://127.0.0.1:1", 1, "no server answers at http://127.0.0.1:1"),
        ("ftp://127.0.0.1", 2, "must begin with http://"),
        ("127.0.0.1:8000", 2, "--url"),
    ],
)
def test_a_client_says_where_it_looked(url: str, code: int, said: str) -> None:
    assert_one_line(tiller("vectors", "list", "--url", url), code, said)
