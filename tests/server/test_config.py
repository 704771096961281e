"""Settings: one table, from which flags, variables and the documents come; precedence, ranges, named errors."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from server.config import Settings, SettingsRefused, options, settings_markdown

ROOT = Path(__file__).parents[2]

FLAGS = [
    "--host",
    "--port",
    "--data-dir",
    "--device",
    "--dtype",
    "--kernels",
    "--engine",
    "--engine-arg",
    "--revision",
    "--adapter",
    "--served-model-name",
    "--chat-template",
    "--max-model-len",
    "--max-running",
    "--kv-cache-gib",
    "--max-batch-tokens",
    "--background-share",
    "--dose-limit",
    "--inline-directions",
    "--probe-metrics",
    "--max-upload-mib",
    "--max-queue",
    "--max-stored-responses",
    "--api-key-file",
    "--insecure",
    "--cors-origin",
    "--rate-limit",
    "--token-limit",
    "--request-timeout",
    "--body-timeout",
    "--send-timeout",
    "--drain-timeout",
    "--step-timeout",
    "--on-failure",
    "--grammar-seconds",
    "--grammar-mib",
    "--stream-keep-alive",
    "--otel-endpoint",
    "--no-page",
    "--log-level",
    "--log-json",
]


def test_the_table_has_the_flags_of_the_contract() -> None:
    assert [option.flag for option in options()] == ["MODEL", *FLAGS]
    assert {option.variable for option in options()} >= {"TILLER_MODEL", "TILLER_PORT", "TILLER_KV_CACHE_GIB"}


def test_the_settings_page_is_current() -> None:
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert page == settings_markdown(), "run: python -m server.config > docs/settings.md"


def test_the_page_is_what_the_command_in_it_prints() -> None:
    printed = subprocess.run(
        [sys.executable, "-m", "server.config"], cwd=ROOT, capture_output=True, encoding="utf-8", check=True
    )
    assert printed.stdout == settings_markdown()


def test_defaults() -> None:
    settings = Settings.from_sources({}, {"XDG_DATA_HOME": "/var/lib/somewhere"})
    assert settings == Settings(data_dir=Path("/var/lib/somewhere/tiller"))
    assert (settings.model, settings.host, settings.port, settings.insecure) == (None, "127.0.0.1", 8000, False)


@pytest.mark.parametrize("environ", [{}, {"XDG_DATA_HOME": ""}, {"XDG_DATA_HOME": "relative/path"}])
def test_without_a_usable_data_home_the_home_folder_is_used(environ: dict[str, str]) -> None:
    assert Settings.from_sources({}, environ).data_dir == Path.home() / ".local" / "share" / "tiller"


def test_a_flag_wins_over_its_variable_and_that_over_the_default() -> None:
    environ = {"TILLER_PORT": "9000", "TILLER_HOST": "::1", "TILLER_INSECURE": "true", "TILLER_DTYPE": ""}
    settings = Settings.from_sources({"port": "9001", "host": None, "log_json": "true"}, environ)
    assert (settings.port, settings.host, settings.insecure) == (9001, "::1", True)
    assert (settings.log_json, settings.dtype) == (True, "auto")


def test_every_value_can_be_given_either_way() -> None:
    texts = {
        "model": "org/name",
        "host": "0.0.0.0",
        "port": "0",
        "data_dir": "/d",
        "device": "cuda:1",
        "dtype": "BFLOAT16",
        "kernels": "Torch",
        "revision": "v1",
        "adapter": "org/lora",
        "served_model_name": "base",
        "chat_template": "t.jinja",
        "max_model_len": "2048",
        "max_running": "8",
        "kv_cache_gib": "1.5",
        "max_batch_tokens": "256",
        "background_share": "0.1",
        "dose_limit": "Cap",
        "inline_directions": "1",
        "probe_metrics": "yes",
        "max_upload_mib": "0.5",
        "max_queue": "0",
        "max_stored_responses": "0",
        "api_key_file": "/run/keys",
        "insecure": "on",
        "cors_origin": "https://app.example",
        "rate_limit": "60",
        "token_limit": "100000",
        "request_timeout": "600",
        "body_timeout": "5.5",
        "send_timeout": "60",
        "drain_timeout": "20",
        "step_timeout": "600",
        "engine": "VLLM",
        "engine_arg": "a=1 b=2",
        "on_failure": "Stay",
        "grammar_seconds": "2.5",
        "grammar_mib": "256",
        "stream_keep_alive": "10",
        "otel_endpoint": "http://collector:4318",
        "no_page": "yes",
        "log_level": "Debug",
        "log_json": "1",
    }
    assert set(texts) == {option.name for option in options()}
    by_flags = Settings.from_sources(texts, {})
    by_variables = Settings.from_sources({}, {option.variable: texts[option.name] for option in options()})
    assert by_flags == by_variables
    defaults = Settings()
    for field in dataclasses.fields(Settings):
        assert getattr(by_flags, field.name) != getattr(defaults, field.name), field.name
    assert (by_flags.dtype, by_flags.kv_cache_gib, by_flags.max_queue) == ("bfloat16", 1.5, 0)


REFUSED = [
    ("port", "65536"),
    ("port", "-1"),
    ("port", "tcp://10.0.0.1:8000"),
    ("port", "80.0"),
    ("host", "  "),
    ("device", "gpu"),
    ("dtype", "int8"),
    ("engine", "onnx"),
    ("engine_arg", "enforce_eager"),
    ("engine_arg", "a='1"),
    ("max_model_len", "0"),
    ("max_running", "0"),
    ("kv_cache_gib", "0"),
    ("kv_cache_gib", "nan"),
    ("kv_cache_gib", "inf"),
    ("max_batch_tokens", "many"),
    ("max_upload_mib", "-1"),
    ("max_queue", "-1"),
    ("max_stored_responses", "100001"),
    ("insecure", "maybe"),
    ("cors_origin", "app.example"),
    ("cors_origin", "https://app.example/"),
    ("cors_origin", "https://app.example/path"),
    ("cors_origin", "https://user@app.example"),
    ("cors_origin", "https://*.example"),
    ("cors_origin", "https://a.example,,https://b.example"),
    ("cors_origin", "null"),
    ("cors_origin", "file://"),
    ("cors_origin", "*,https://app.example"),
    ("rate_limit", "0"),
    ("token_limit", "0"),
    ("grammar_mib", "15"),
    ("request_timeout", "0"),
    ("body_timeout", "inf"),
    ("send_timeout", "0"),
    ("stream_keep_alive", "-1"),
    ("background_share", "1.5"),
    ("drain_timeout", "0"),
    ("step_timeout", "soon"),
    ("on_failure", "restart"),
    ("otel_endpoint", "collector:4318"),
    ("otel_endpoint", "http://user:secret@collector"),
    ("log_level", "loud"),
]


@pytest.mark.parametrize(("name", "text"), REFUSED)
def test_a_bad_value_is_refused_by_the_name_it_was_given_under(name: str, text: str) -> None:
    option = next(option for option in options() if option.name == name)
    with pytest.raises(SettingsRefused, match=f"^{option.flag}: expected") as by_flag:
        Settings.from_sources({name: text}, {})
    assert repr(text) in str(by_flag.value)
    with pytest.raises(SettingsRefused, match=f"^{option.variable}: expected"):
        Settings.from_sources({}, {option.variable: text})


def test_origins_become_what_browsers_send() -> None:
    given = "HTTPS://App.Example:443, http://127.0.0.1:80,http://[::1]:3000,app://obsidian.md,https://b.example:8443"
    expected = "https://app.example http://127.0.0.1 http://[::1]:3000 app://obsidian.md https://b.example:8443"
    assert Settings.from_sources({"cors_origin": given}, {}).cors_origin == tuple(expected.split())


def test_settings_do_not_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().port = 1  # type: ignore[misc]
