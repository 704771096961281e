"""`tiller bench` without `--url`: loads a model as `tiller serve` does and measures its engine."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from server.cli.bench.result import Progress, Result, numbers, shown
from server.cli.errors import USAGE, CommandFailed
from server.cli.loading.engine import loading, readable_failures, source_of, start_engine
from server.cli.logs import set_up_logging
from server.config import Settings, SettingsRefused

if TYPE_CHECKING:
    from server.bench.offline import Figure

SETTINGS = ("model", "device", "dtype", "kernels", "revision", "adapter", "max_model_len", "kv_cache_gib")
"""Settings of `tiller serve` that also apply here."""


def measure_offline(arguments: argparse.Namespace, environ: Mapping[str, str], progress: Progress) -> Result:
    """Measure the engine. Raises `CommandFailed`."""
    batches = numbers("--batch", arguments.batch)
    num_vectors = numbers("--vectors", arguments.vectors)
    settings = _settings(arguments, environ, max(batches))
    source = source_of(settings)
    from server.bench.offline import peak_memory_mib, run_bench, workloads_of
    from server.engine.errors import EngineError

    workloads = workloads_of(
        batches, num_vectors, arguments.prompt_tokens, arguments.new_tokens, arguments.shared_tokens
    )
    with contextlib.ExitStack() as cleanup:
        with readable_failures(settings), loading(settings, source) as begin:
            engine, _ = start_engine(settings, source, cleanup, begin)
        with progress(len(workloads) * (arguments.repeats + 1)) as advance:
            try:
                figures = run_bench(engine, workloads, arguments.repeats, advance)
            except EngineError as error:
                raise CommandFailed(str(error)) from error
        info = engine.info
    about = {
        "model": info.model_id,
        "weights_dtype": info.weights_dtype,
        "dtype": info.dtype,
        "device": info.device,
        "threads": _num_threads(),
        "peak_memory_mib": round(peak_memory_mib()),
        "repeats": arguments.repeats,
    }
    return _result(about, figures)


def _settings(arguments: argparse.Namespace, environ: Mapping[str, str], batch: int) -> Settings:
    flags = {name: getattr(arguments, name) for name in SETTINGS}
    try:
        settings = Settings.from_sources(flags, environ)
    except SettingsRefused as error:
        raise CommandFailed(str(error), USAGE) from None
    set_up_logging(settings.log_level, as_json=settings.log_json)
    return dataclasses.replace(settings, max_running=max(settings.max_running, batch))


def _num_threads() -> int:
    import torch

    return torch.get_num_threads()


def _result(about: Mapping[str, Any], figures: list[Figure]) -> Result:
    stored, computed = about["weights_dtype"], about["dtype"]
    precision = stored if stored == computed else f"{stored}, computed in {computed}"
    machine = f"{about['device']}, {about['threads']} threads; peak {about['peak_memory_mib']} MiB"
    title = f"{about['model']}, {precision} on {machine}"
    rows = [("batch", "vectors", "prefill tokens/s", "decode tokens/s", "prefill ÷ unsteered", "decode ÷ unsteered")]
    for figure in figures:
        rows.append(
            (
                str(figure.workload.batch),
                str(figure.workload.num_vectors or "none"),
                shown(figure.prefill, ".0f"),
                shown(figure.decode, ".1f"),
                "" if figure.prefill_ratio is None else shown(figure.prefill_ratio, ".3f"),
                "" if figure.decode_ratio is None else shown(figure.decode_ratio, ".3f"),
            )
        )

    def plot() -> bytes:
        from server.bench.plots import Measured, speeds

        measured = [
            Measured(f"batch {figure.workload.batch}, {figure.workload.num_vectors or 'no'} vectors", figure.decode)
            for figure in figures
        ]
        return speeds(title, "decode tokens per second", measured)

    return Result(
        head=[title, f"medians of {about['repeats']} interleaved repeats (smallest to largest)"],
        rows=rows,
        foot=(),
        json={**about, "figures": [figure.to_json() for figure in figures]},
        plot=plot,
    )
