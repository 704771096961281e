"""API keys: where they come from, what each allows, and that none is ever shown."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from server.keys import ApiKeys, KeysRefused, Role, check_exposure


def key_file(tmp_path: Path, text: str, mode: int = 0o600) -> Path:
    file = tmp_path / "keys"
    file.write_text(text, encoding="utf-8")
    file.chmod(mode)
    return file


def test_keys_of_the_environment_and_the_file_add_up(tmp_path: Path) -> None:
    file = key_file(tmp_path, "# staff\n\nuse:gamma\n  manage: delta:with:colons\n")
    keys = ApiKeys.from_sources({"TILLER_API_KEYS": "alpha, beta,", "TILLER_MANAGE_KEYS": "root"}, file)
    roles = {key: keys.role_of(key) for key in ("alpha", "beta", "root", "gamma", "delta:with:colons", "alph", "")}
    assert roles == {
        "alpha": Role.USE,
        "beta": Role.USE,
        "root": Role.MANAGE,
        "gamma": Role.USE,
        "delta:with:colons": Role.MANAGE,
        "alph": None,
        "": None,
    }
    assert not keys.is_open


def test_a_key_of_both_roles_may_manage() -> None:
    """So the search cannot have ended at the first key that fits."""
    assert ApiKeys(use=["same"], manage=["same"]).role_of("same") is Role.MANAGE
    assert ApiKeys(manage=["same"], use=["same", "other"]).role_of("same") is Role.MANAGE


def test_without_keys_the_server_is_open() -> None:
    assert ApiKeys().is_open
    assert ApiKeys.from_sources({"TILLER_API_KEYS": ""}).is_open
    assert ApiKeys().role_of("anything") is None


def test_any_text_can_be_asked_for() -> None:
    keys = ApiKeys(use=["alpha"])
    assert keys.role_of("ключ") is None
    assert keys.role_of("\udcff") is None


def test_no_key_is_shown() -> None:
    keys = ApiKeys(use=["tell-nobody"], manage=["nor-this"])
    shown = f"{keys!r} {keys} {vars(keys)}"
    assert "tell-nobody" not in shown
    assert "nor-this" not in shown


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("use:ok\nsecret-without-role\n", "line 2: expected use:KEY or manage:KEY"),
        ("admin:secret", "line 1: expected use:KEY or manage:KEY"),
        ("use:", "line 1: the key must be"),
        ("use:secret with space", "line 1: the key must be .* without spaces"),
        ("manage:sécret", "printable ASCII"),
        ("# secret\n", "contains no key"),
    ],
)
def test_a_bad_key_file_is_refused_without_showing_it(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(KeysRefused, match=said) as refused:
        ApiKeys.from_sources({}, key_file(tmp_path, text))
    assert "secret" not in str(refused.value).replace(str(tmp_path), "")


def test_a_key_file_that_others_may_change_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeysRefused, match="chmod o-w"):
        ApiKeys.from_sources({}, key_file(tmp_path, "use:alpha", 0o602))


def test_a_key_file_that_others_may_read_is_warned_about(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    # containers hand out secrets with mode 0444, so it cannot be refused
    with caplog.at_level(logging.WARNING):
        keys = ApiKeys.from_sources({}, key_file(tmp_path, "use:alpha", 0o444))
    assert keys.role_of("alpha") is Role.USE
    assert "chmod 600" in caplog.text


def test_a_key_file_that_is_not_there_or_not_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeysRefused, match="No such file"):
        ApiKeys.from_sources({}, tmp_path / "none")
    with pytest.raises(KeysRefused, match="cannot read"):
        ApiKeys.from_sources({}, tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(KeysRefused, match="not UTF-8"):
        ApiKeys.from_sources({}, tmp_path / "binary")


@pytest.mark.parametrize("text", [",", " , ", "two words", "ключ"])
def test_a_variable_that_is_set_and_unusable_is_refused(text: str) -> None:
    """A server whose owner meant to set a key must not start open."""
    with pytest.raises(KeysRefused, match="TILLER_API_KEYS"):
        ApiKeys.from_sources({"TILLER_API_KEYS": text})


@pytest.mark.parametrize("host", ["127.0.0.1", "127.3.2.1", "::1", "localhost", "LOCALHOST"])
def test_loopback_needs_no_keys(host: str) -> None:
    check_exposure(host, ApiKeys(), insecure=False)


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "", "192.168.1.5", "10.0.0.1", "example.org", "localhost.example.org"]
)
def test_other_addresses_need_keys_or_insecure(host: str) -> None:
    with pytest.raises(KeysRefused, match=r"TILLER_API_KEYS.*--insecure"):
        check_exposure(host, ApiKeys(), insecure=False)
    check_exposure(host, ApiKeys(), insecure=True)
    check_exposure(host, ApiKeys(use=["alpha"]), insecure=False)
