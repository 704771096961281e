"""`tiller train`, `evaluate`, `sweep` and `calibrate`: run here or on a server, then show tables, files and what to do
next. `generated.py` evaluates generated answers.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from server.cli.client.connection import not_understood
from server.cli.errors import CommandFailed
from server.cli.training.files import OutputFolder
from server.cli.training.options import TASK_PREFIX, check_consistent, task_options
from server.cli.training.probe_tables import show_probe
from server.cli.training.tables import show_calibration, show_report, show_sweep
from vectors.formats import FORMATS

_EXTENSIONS = (*(format.name for format in FORMATS), "jsonl", "json", "csv", "parquet")
_EXTENSION = re.compile(rf"\.({'|'.join(_EXTENSIONS)})$", re.IGNORECASE)
_CONFIDENCE = "accuracies are letter-balanced, with 95 % intervals in brackets; changes are in percentage points"


def train(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Run one of the four commands; returns the exit code. Raises `CommandFailed`."""
    check_consistent(arguments)
    if getattr(arguments, "prompts", None) is not None:
        from server.cli.training.generated import evaluate_generated

        return evaluate_generated(arguments, environ, _folder(arguments))
    options = task_options(arguments)
    is_here = arguments.url is None
    vector_file = f"{_vector_name(arguments)}.safetensors" if is_here and _makes_vector(arguments) else None
    output = OutputFolder(_folder(arguments), vector=vector_file, force=arguments.force)
    steered_model: str | None = None
    vector_path: Path | None = None
    if is_here:
        from server.cli.training.local import train_here

        done = train_here(arguments, environ, options)
        report, files = done.report, list(done.files)
        if done.vector is not None and vector_file is not None:
            from vectors.formats.safetensors import encode_safetensors

            files.append((vector_file, encode_safetensors(done.vector)))
            vector_path = output.folder / vector_file
    else:
        from server.cli.training.remote import train_on_server

        fetched = train_on_server(arguments, environ, options)
        files, steered_model = list(fetched.files), fetched.steered_model
        report = _parsed(files[0][1])
    written = output.write(files)
    if arguments.json:
        print(json.dumps(report, indent=1))
        return 0
    console = Console(highlight=False)
    try:
        if arguments.command == "sweep":
            show_sweep(report, console)
        elif arguments.command == "calibrate":
            show_calibration(report, console)
        elif report.get("task") == "probe":
            show_probe(report, console)
        else:
            show_report(report, console)
    except (KeyError, TypeError, ValueError):  # from a server of another version
        raise CommandFailed(f"this version cannot show the report in {written[0]}") from None
    if arguments.command != "calibrate" and report.get("task") != "probe":
        console.print(Text(_CONFIDENCE, style="dim"))
    console.print()
    print(f"files: {', '.join(map(str, written))}")
    if _makes_vector(arguments):
        print(_next_step(arguments, report, vector_path, steered_model))
    return 0


def _folder(arguments: argparse.Namespace) -> Path:
    if arguments.output is not None:
        return Path(arguments.output).expanduser()
    if arguments.command == "train":
        return Path(arguments.name)
    if arguments.command == "evaluate":
        return Path(f"{_stem(arguments.vector)}-evaluation")
    if arguments.command == "calibrate":
        return Path(f"{_stem(arguments.vector)}-dose")
    return Path(f"{_stem(arguments.data)}-sweep")


def _makes_vector(arguments: argparse.Namespace) -> bool:
    return arguments.command in ("train", "calibrate")


def _vector_name(arguments: argparse.Namespace) -> str:
    return str(arguments.name) if arguments.command == "train" else _stem(arguments.vector)


def _stem(place: str) -> str:
    """A name for a folder: of `a/honest.safetensors` `honest`, of `task:bbq/religion` `bbq-religion`."""
    if place.startswith(TASK_PREFIX):
        return re.sub(r"[^A-Za-z0-9._-]+", "-", place.removeprefix(TASK_PREFIX)).strip("-.") or "task"
    return _EXTENSION.sub("", Path(place).name).partition("@")[0] or "data"


def _parsed(content: bytes) -> dict[str, Any]:
    try:
        report = json.loads(content)
    except ValueError:
        report = None
    if not isinstance(report, dict):
        raise not_understood()
    return report


def _next_step(
    arguments: argparse.Namespace, report: Mapping[str, Any], vector_path: Path | None, steered_model: str | None
) -> str:
    """How to use the vector, or why there is none and how to keep it anyway."""
    name = _vector_name(arguments)
    if report.get("task") == "probe" and (steered_model is not None or vector_path is not None):
        put = "" if vector_path is None else f"tiller vectors put {name} {vector_path}, then "
        return f'use it: {put}"probes": [{{"vector": "{name}"}}] in a request'
    if steered_model is not None:
        return f'use it: "steering": [{{"vector": "{name}"}}] in a request, or the model {steered_model}'
    if vector_path is not None:
        use = f'"steering": [{{"vector": "{name}"}}]'
        return f"use it: tiller vectors put {name} {vector_path}, then {use} in a request"
    if arguments.command == "calibrate":
        return "no vector was published: it was changed meanwhile; calibrate it again"
    kept = "published" if arguments.url is not None else "written"
    return (
        f"no vector was {kept}: the report does not recommend it; to keep it anyway, "
        "run again with --allow-no-gain --force"
    )
