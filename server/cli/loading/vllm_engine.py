"""From settings to vLLM as the engine, and which settings it does not have."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from server.cli.errors import USAGE, CommandFailed
from server.config import Settings

if TYPE_CHECKING:
    from server.engine.protocol import Engine


def load_vllm(settings: Settings, location: str, model_id: str, begin: Callable[[str], None]) -> Engine:
    """Start vLLM on the model at `location`. Raises `ModelRefused`, and `CommandFailed` for settings of others."""
    from server.engine.vllm.installed import installed_vllm
    from server.engine.vllm.start import ENVIRONMENT, VllmOptions, start_vllm

    platform = installed_vllm()
    if settings.adapter is not None:
        raise CommandFailed("--adapter is an option of --engine torch; merge the adapter into the model first", USAGE)
    if settings.kernels != "auto":
        raise CommandFailed("--kernels is an option of --engine torch; vLLM brings its own", USAGE)
    if settings.device not in ("auto", platform):
        raise CommandFailed(f"--device {settings.device}: the vLLM that is installed runs on {platform}", USAGE)
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    return start_vllm(
        VllmOptions(
            location=location,
            model_id=model_id,
            revision=settings.revision,
            dtype=settings.dtype,
            max_model_len=settings.max_model_len,
            max_running=settings.max_running,
            max_batch_tokens=settings.max_batch_tokens,
            max_queue=settings.max_queue,
            kv_cache_gib=settings.kv_cache_gib,
            background_share=settings.background_share,
            extra=dict(settings.engine_arg),
        ),
        begin,
    )
