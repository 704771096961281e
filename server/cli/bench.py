"""`tiller bench`: loads a model as `tiller serve` does and measures its engine."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from server.cli.errors import USAGE, CommandFailed
from server.cli.loading.engine import loading, readable_failures, source_of, start_engine
from server.cli.logs import set_up_logging
from server.config import Settings, SettingsRefused, options

if TYPE_CHECKING:
    from server.bench.offline import Figure, Spread

SETTINGS = ("model", "device", "dtype", "kernels", "revision", "adapter", "max_model_len", "kv_cache_gib")
"""Settings of `tiller serve` that also apply here."""

_LONGEST_LIST = 16
_LARGEST = 1 << 20


def add_bench(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser of `tiller`."""
    parser = commands.add_parser(
        "bench",
        help="measure how fast a model is, unsteered and steered",
        description="Load a model as `tiller serve` does and measure its engine, without HTTP: prefill and decoding by "
        "batch size, unsteered and with different vectors on the requests of a batch, in every block. Nothing else "
        "should run on the machine.",
        allow_abbrev=False,
    )
    by_name = {option.name: option for option in options()}
    parser.add_argument(
        "model", nargs="?", metavar="MODEL", help=f"{by_name['model'].help} (default: the embedded one)"
    )
    for name, default, meaning in (
        ("batch", "1,8,32", "requests at once"),
        ("vectors", "1,8,32", "different vectors among the requests of a batch, at most one each"),
    ):
        parser.add_argument(f"--{name}", default=default, metavar="NUMBERS", help=f"{meaning} (default: {default})")
    for name, number, meaning in (
        ("prompt-tokens", 64, "tokens of a prompt"),
        ("new-tokens", 64, "tokens of an answer"),
        ("repeats", 5, "measurements of each, after one to warm up"),
    ):
        parser.add_argument(
            f"--{name}", type=_count, default=number, metavar="COUNT", help=f"{meaning} (default: {number})"
        )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    for name in SETTINGS[1:]:
        option = by_name[name]
        meaning = f"{option.help} (default: {option.default_text})".replace("%", "%%")
        parser.add_argument(option.flag, metavar=option.metavar, help=meaning)


def _count(text: str) -> int:
    number = int(text)
    if not 0 < number <= _LARGEST:
        raise ValueError
    return number


_count.__name__ = "whole number above 0"  # as argparse names it in errors


def bench(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Measure and print a table, or JSON; returns the exit code. Raises `CommandFailed`."""
    batches = _numbers("--batch", arguments.batch)
    num_vectors = _numbers("--vectors", arguments.vectors)
    settings = _settings(arguments, environ, max(batches))
    source = source_of(settings)
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from server.bench.offline import peak_memory_mib, run_bench, workloads_of
    from server.engine.errors import EngineError

    workloads = workloads_of(batches, num_vectors, arguments.prompt_tokens, arguments.new_tokens)
    with contextlib.ExitStack() as cleanup:
        with readable_failures(settings), loading(settings, source) as begin:
            engine, _ = start_engine(settings, source, cleanup, begin)
        columns = (
            TextColumn("measuring"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        console = Console(stderr=True)
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
            bar = progress.add_task("", total=len(workloads) * (arguments.repeats + 1))
            try:
                figures = run_bench(engine, workloads, arguments.repeats, lambda: progress.advance(bar))
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
    if arguments.json:
        print(json.dumps({**about, "figures": [figure.to_json() for figure in figures]}, indent=1))
    else:
        _print_table(about, figures)
    return 0


def _settings(arguments: argparse.Namespace, environ: Mapping[str, str], batch: int) -> Settings:
    flags = {name: getattr(arguments, name) for name in SETTINGS}
    try:
        settings = Settings.from_sources(flags, environ)
    except SettingsRefused as error:
        raise CommandFailed(str(error), USAGE) from None
    set_up_logging(settings.log_level, as_json=settings.log_json)
    return dataclasses.replace(settings, max_running=max(settings.max_running, batch))


def _numbers(flag: str, text: str) -> list[int]:
    """Comma-separated whole numbers above 0. Raises `CommandFailed`."""
    found = text.split(",")
    is_whole = all(part.strip().isdecimal() and 0 < int(part) <= _LARGEST for part in found)
    if not is_whole or len(found) > _LONGEST_LIST:
        raise CommandFailed(f"{flag}: expected whole numbers above 0 such as 1,8,32, got {text[:60]!r}", USAGE)
    return sorted({int(part) for part in found})


def _num_threads() -> int:
    import torch

    return torch.get_num_threads()


def _print_table(about: Mapping[str, Any], figures: list[Figure]) -> None:
    stored, computed = about["weights_dtype"], about["dtype"]
    precision = stored if stored == computed else f"{stored}, computed in {computed}"
    machine = f"{about['device']}, {about['threads']} threads; peak {about['peak_memory_mib']} MiB"
    print(f"{about['model']}, {precision} on {machine}")
    print(f"medians of {about['repeats']} interleaved repeats (smallest to largest)")
    heads = ("batch", "vectors", "prefill tokens/s", "decode tokens/s", "prefill ÷ unsteered", "decode ÷ unsteered")
    rows = [heads]
    for figure in figures:
        rows.append(
            (
                str(figure.workload.batch),
                str(figure.workload.num_vectors or "none"),
                _shown(figure.prefill, ".0f"),
                _shown(figure.decode, ".1f"),
                "" if figure.prefill_ratio is None else _shown(figure.prefill_ratio, ".3f"),
                "" if figure.decode_ratio is None else _shown(figure.decode_ratio, ".3f"),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(heads))]
    for row in rows:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _shown(spread: Spread, form: str) -> str:
    return f"{spread.median:{form}} ({spread.low:{form}}–{spread.high:{form}})"
