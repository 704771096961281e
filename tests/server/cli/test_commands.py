"""The command line's shape: help, version, what it imports, and how expected failures look."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from server import __version__
from server.cli import main
from server.config import options
from server.demo import MODEL_DIR
from tests.server.cli.running import ROOT, call_tiller, environment, tiller
from tests.stranger import NONSENSE, stranger


def test_help_names_every_command() -> None:
    shown = tiller("--help")
    assert shown.returncode == 0
    for command in ("serve", "chat", "vectors"):
        assert f"    {command} " in shown.stdout


def test_help_of_serve_names_every_setting_with_its_variable() -> None:
    shown = " ".join(call_tiller("serve", "--help").stdout.split())
    for option in options():
        assert option.flag in shown
        assert option.variable in shown
        assert option.help in shown


def test_version() -> None:
    shown = tiller("--version")
    assert (shown.returncode, shown.stdout) == (0, f"tiller {__version__}\n")


@pytest.mark.parametrize("arguments", [[], ["sing"], ["vectors"], ["serve", "--prt", "1"], ["vectors", "put", "a"]])
def test_what_cannot_be_understood_is_a_usage_error(arguments: list[str]) -> None:
    shown = call_tiller(*arguments)
    assert shown.returncode == 2
    assert "usage: tiller" in shown.stderr


def python(code: str, *, missing: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """Run a program in which the packages `missing` cannot be imported, as where they are not installed."""
    refuse = f"""
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {tuple(missing)!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
"""
    return subprocess.run(
        [sys.executable, "-c", refuse + code],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        encoding="utf-8",
        check=False,
    )


TENSORS = ("torch", "transformers", "numpy", "safetensors", "tokenizers")
SERVING = ("fastapi", "starlette", "uvicorn", "llguidance", "prometheus_client")
CLIENT = ("httpx", "pydantic", "rich", "anyio")


def test_help_loads_nothing_that_takes_time() -> None:
    """It comes in a tenth of a second, of which this is the reason."""
    shown = python(
        "from server.cli import main\n"
        "try:\n    main(['--help'], {})\nexcept SystemExit:\n    pass\n"
        f"print([name for name in {(*TENSORS, *SERVING, *CLIENT)!r} if name in sys.modules])"
    )
    assert shown.stdout.endswith("[]\n"), shown.stdout + shown.stderr


def test_clients_load_no_tensor_library() -> None:
    shown = python(
        "from server.cli import main\n"
        "assert main(['vectors', 'list', '--url', 'http://127.0.0.1:1'], {}) == 1\n"
        "assert main(['chat', '--url', 'http://127.0.0.1:1'], {}) == 1\n"
        "assert main(['serve', '--port', 'x'], {}) == 2\n"
        f"print([name for name in {(*TENSORS, *SERVING)!r} if name in sys.modules])"
    )
    assert shown.stdout == "[]\n", shown.stderr


def test_clients_need_no_tensor_library() -> None:
    command = f"from server.cli import main; sys.exit(main({['vectors', 'list', '--url', 'http://127.0.0.1:1']}, {{}}))"
    shown = python(command, missing=(*TENSORS, *SERVING))
    assert_one_line(shown, 1, "no server answers at http://127.0.0.1:1")


@pytest.mark.parametrize(
    ("command", "missing", "said"),
    [
        (["serve"], SERVING, "serve needs uvicorn, which is not installed: pip install 'tiller[server]'"),
        (["serve"], TENSORS, "serve needs torch, which is not installed: pip install 'tiller[server]'"),
        (["vectors", "list"], CLIENT, "vectors needs rich, which is not installed: pip install 'tiller[client]'"),
        (["chat"], ["httpx"], "chat needs httpx, which is not installed: pip install 'tiller[client]'"),
        (
            ["train", "data.jsonl", "--name", "x"],
            TENSORS,
            "train needs torch, which is not installed: pip install 'tiller[server,train]'",
        ),
        (
            ["train", "data.jsonl", "--name", "x", "--url", "http://127.0.0.1:1"],
            ["rich"],
            "train needs rich, which is not installed: pip install 'tiller[client]'",
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_is_not_installed_is_named_with_its_extra(
    command: list[str], missing: Sequence[str], said: str, tmp_path: Path
) -> None:
    if command == ["serve"]:
        command = ["serve", "--port", "0", "--data-dir", str(tmp_path)]
    shown = python(f"from server.cli import main; sys.exit(main({command!r}, {{}}))", missing=missing)
    assert (shown.returncode, shown.stderr) == (1, f"tiller: {said}\n")


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
    assert_one_line(call_tiller("serve", "--max-running", "0"), 2, "--max-running: expected a whole number from 1")


def test_a_bad_variable_is_named() -> None:
    environ = {"TILLER_KV_CACHE_GIB": "lots"}
    assert_one_line(call_tiller("serve", environ=environ), 2, "TILLER_KV_CACHE_GIB: expected a number", "'lots'")


def test_a_public_address_needs_keys() -> None:
    assert_one_line(call_tiller("serve", "--host", "0.0.0.0"), 2, "TILLER_API_KEYS", "--insecure")
    assert_one_line(call_tiller("serve", "--cors-origin", "*"), 2, "--cors-origin", "TILLER_API_KEYS", "--insecure")


def test_an_unusable_key_file_is_named(tmp_path: Path) -> None:
    shown = call_tiller("serve", "--api-key-file", tmp_path / "none")
    assert_one_line(shown, 2, "--api-key-file", "No such file")


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    assert_one_line(call_tiller("serve", tmp_path / "none"), 2, "none: no such folder")


def test_a_folder_has_no_revision(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    assert_one_line(
        call_tiller("serve", tmp_path / "model", "--revision", "v1"), 2, "--revision v1", "model is a folder"
    )
    assert_one_line(
        call_tiller("serve", environ={"TILLER_REVISION": "v1"}), 2, "--revision v1", f"{MODEL_DIR} is a folder"
    )


def test_a_variable_that_is_no_setting_is_warned_about(tmp_path: Path) -> None:
    environ = {"TILLER_PROT": "hush", "TILLER_PORT": "0", "TILLER_API_KEYS": "hush", "TILLER_MANAGE_KEYS": "hush"}
    shown = call_tiller("serve", tmp_path / "none", environ=environ)
    assert shown.returncode == 2
    warning, _ = shown.stderr.splitlines()
    assert "WARNING" in warning
    assert "TILLER_PROT is set but is not a setting" in warning
    assert "hush" not in warning


def test_the_key_of_the_clients_gives_a_server_none(tmp_path: Path) -> None:
    shown = call_tiller("serve", tmp_path / "none", environ={"TILLER_API_KEY": "hush"})
    warning, _ = shown.stderr.splitlines()
    assert "TILLER_API_KEY is the key that clients send" in warning
    assert "TILLER_API_KEYS and TILLER_MANAGE_KEYS" in warning
    assert "hush" not in warning
    both = {"TILLER_API_KEY": "hush", "TILLER_MANAGE_KEYS": "hush"}
    assert_one_line(call_tiller("serve", tmp_path / "none", environ=both), 2, "no such folder")


def test_a_file_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert_one_line(call_tiller("serve", tmp_path / "model.safetensors"), 2, "expected a folder, got a file")
    (tmp_path / "model-Q4_K_M.gguf").touch()
    assert_one_line(
        call_tiller("serve", tmp_path / "model-Q4_K_M.gguf"), 2, "is a GGUF model, which tiller does not serve"
    )


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    data_dir = tmp_path / "data"
    shown = call_tiller("serve", tmp_path / "empty", "--port", "0", "--data-dir", data_dir, "--log-level", "error")
    assert_one_line(shown, 1, "empty has no config.json")


def test_a_port_in_use_is_named_before_anything_is_loaded(tmp_path: Path, taken_port: int) -> None:
    (tmp_path / "model").mkdir()  # loading this would fail in another way
    shown = call_tiller("serve", tmp_path / "model", "--port", str(taken_port), "--data-dir", tmp_path)
    assert_one_line(shown, 1, f"port {taken_port} on 127.0.0.1 is in use", "--port 0")


def test_an_address_that_is_not_ours_is_named(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    shown = call_tiller("serve", tmp_path / "model", "--host", "192.0.2.1", "--insecure", "--data-dir", tmp_path)
    assert_one_line(shown, 1, "cannot listen on 192.0.2.1")


def test_an_unwritable_data_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "file").write_text("", encoding="utf-8")
    shown = call_tiller("serve", tmp_path / "model", "--port", "0", "--data-dir", tmp_path / "file")
    assert_one_line(shown, 1, str(tmp_path / "file"))


@pytest.mark.parametrize(
    ("url", "code", "said"),
    [
        ("http://127.0.0.1:1", 1, "no server answers at http://127.0.0.1:1"),
        ("ftp://127.0.0.1", 2, "expected an http:// or https:// URL"),
        ("127.0.0.1:8000", 2, "--url"),
        ("http://..", 1, "no server answers at http://.."),
    ],
)
def test_a_client_says_where_it_looked(url: str, code: int, said: str) -> None:
    assert_one_line(call_tiller("vectors", "list", "--url", url), code, said)


@pytest.mark.parametrize("key", ["secret\n", "secret\r", "two secrets", "sécret"])
def test_a_key_that_no_header_can_carry_is_refused_without_showing_it(key: str) -> None:
    shown = call_tiller("vectors", "list", "--url", "http://127.0.0.1:1", environ={"TILLER_API_KEY": key})
    assert_one_line(shown, 2, "TILLER_API_KEY", "printable ASCII")
    assert "cret" not in shown.stderr


@pytest.mark.parametrize("command", [["chat"], ["vectors", "list"], ["vectors", "rm", "x"]])
def test_no_command_line_takes_a_key(command: list[str]) -> None:
    """Everyone on a machine may read the command lines of its processes."""
    shown = call_tiller(*command, "--api-key", "secret", "--url", "http://127.0.0.1:1")
    assert (shown.returncode, "unrecognized arguments" in shown.stderr) == (2, True)


ACTIONS = ("list", "show", "put", "get", "rollback", "rm")


@pytest.mark.parametrize("arguments", [["chat"], *(["vectors", action] for action in ACTIONS)])
@pytest.mark.parametrize(
    "body",
    [
        *NONSENSE,
        b'{"data": 5, "has_more": false}',
        b'{"data": [5], "has_more": false}',
        b'{"data": [{"id": 5}], "has_more": false}',
        b'{"data": [], "has_more": true}',
    ],
)
def test_what_somebody_else_answers_is_one_line(
    arguments: list[str], body: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_bytes(b"v")
    more = {
        "show": ["x"],
        "put": ["x", str(tmp_path / "file")],
        "get": ["x", "-o", str(tmp_path / "got")],
        "rollback": ["x", "abcdef"],
        "rm": ["x"],
    }
    with stranger(body) as other:
        assert main([*arguments, *more.get(arguments[-1], []), "--url", other.url], {}) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert re.fullmatch(r"tiller: (the answer is not from a tiller server|the server lists no model).*\n", shown.err)
    assert not (tmp_path / "got").exists()


@pytest.mark.parametrize(
    "event",
    [
        "hello",
        "[]",
        "{}",
        '{"choices": 5}',
        '{"choices": [5]}',
        '{"choices": [{"delta": 5}]}',
        '{"choices": [{"delta": {"content": 5}}]}',
        '{"choices": [], "steering": 5}',
        '{"choices": [], "steering": [{"vector": "x"}]}',
    ],
)
def test_a_stream_of_somebody_else_is_one_line(event: str) -> None:
    with stranger(f"data: {event}\n\ndata: [DONE]\n\n".encode()) as other:
        shown = call_tiller("chat", "--model", "x", "--url", other.url, stdin="Hello\n")
    assert (shown.returncode, shown.stdout) == (1, "")
    assert re.fullmatch(r"error: the answer is not from a tiller server.*\n", shown.stderr)
