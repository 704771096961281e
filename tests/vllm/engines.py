"""Engines on vLLM for tests: each test has one of its own, but the workers behind them start once for each model."""

from __future__ import annotations

import atexit
import functools
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from server.engine.protocol import Engine, ModelInfo
from server.engine.vllm.start import ENVIRONMENT, VllmOptions, start_vllm
from tests.families import build

MAX_RUNNING = 40

for _name, _value in {**ENVIRONMENT, "VLLM_CPU_OMP_THREADS_BIND": "nobind"}.items():
    os.environ.setdefault(_name, _value)


@functools.cache
def folder_of(family: str) -> Path:
    """A folder with the tiny model of `family`."""
    folder = Path(tempfile.mkdtemp(prefix="tiller-vllm-")) / family
    build(family).save_pretrained(folder)
    return folder


def options_of(family: str, **changes: Any) -> VllmOptions:
    """Options for the tiny model of `family`: small chunks, so that every border is met."""
    options = VllmOptions(
        location=str(folder_of(family)),
        model_id=family,
        revision=None,
        dtype="float32",
        max_model_len=None,
        max_running=MAX_RUNNING,
        max_batch_tokens=64,
        max_queue=1000,
        kv_cache_gib=0.01,
        background_share=0.05,
    )
    return replace(options, **changes)


class _KeptCore:
    """vLLM's engine core, which stays when an engine on it is closed."""

    def __init__(self, core: Any) -> None:
        self.__dict__["core"] = core

    def __getattr__(self, name: str) -> Any:
        return getattr(self.core, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.core, name, value)

    def shutdown(self) -> None:
        """Nothing: the next test's engine is on it."""


@functools.cache
def _shared(family: str) -> tuple[Any, ModelInfo, Any]:
    engine: Any = start_vllm(options_of(family))
    core, limits = engine._core, engine._limits
    engine._core = _KeptCore(core)
    engine.close()
    atexit.register(core.shutdown)
    return _KeptCore(core), engine.info, limits


def engine_of_shared_core(
    family: str, *, max_requests: int | None = None, end_token_ids: frozenset[int] = frozenset()
) -> Engine:
    """As `tests.server.engine.contract.engines.MakeEngine` says."""
    from server.engine.vllm.engine import VllmEngine

    core, info, limits = _shared(family)
    if max_requests is not None:
        limits = replace(limits, max_running=1, max_queue=max_requests - 1, num_background=0)
    return VllmEngine(core, replace(info, eos_token_ids=end_token_ids), limits)
