"""`tiller study`: a comparison over tasks, variants, sites and seeds from one file, run in this process.

It finds the study, its data and its models, and shows progress; `vectors.study.run` runs the cells and
`vectors.study.tables` makes the tables. Importing it is cheap.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from server.cli.errors import FAILED, USAGE, CommandFailed
from server.cli.training.study_tables import show_comparisons, show_means

if TYPE_CHECKING:
    from server.config import Settings
    from vectors.data import DataSet
    from vectors.study.data import StudyData
    from vectors.study.definition import ModelCase, Study
    from vectors.study.figures import Records
    from vectors.study.run import StudyProgress, StudyReport
    from vectors.training.model_view import ModelView

STUDIES_DIR = Path(__file__).parent.parent.parent / "studies"
"""The folder with the built-in studies."""

DEMO_TASKS = {"demo/sycophancy": "alignment", "demo/sycophancy/honest": "alignment", "demo/facts": "intelligence"}
"""Tasks about the embedded model's own world, with their categories."""

DEMO_ITEMS = 400
_DEMO_SEED = 11
_BATCH_TOKENS = 2048
"""Tokens of one step; nobody else is waiting for the engine."""

_Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_study(commands: _Commands) -> None:
    """Add the command to those of `tiller`."""
    study = commands.add_parser(
        "study",
        help="compare ways to steer over many tasks, from one file",
        description="Train and test every variant at every site on every task with every seed of STUDY, and write "
        "tables of what helps. A study that was stopped continues where it left off.",
        allow_abbrev=False,
    )
    study.add_argument("study", nargs="?", metavar="STUDY", help="a YAML file, or the name of a built-in study")
    study.add_argument("--list", action="store_true", help="list the built-in studies")
    study.add_argument("--output", metavar="FOLDER", help="folder for results (default: ./STUDY-study)")
    study.add_argument("--data-folder", metavar="FOLDER", help="folder of published task files (default: the hub)")
    study.add_argument("--tables", action="store_true", help="only write the tables of existing results")
    study.add_argument("--device", metavar="DEVICE", help="auto (default), cpu, cuda, cuda:N or mps")
    study.add_argument("--dtype", metavar="TYPE", help="auto (default), float32, float16 or bfloat16")


def study(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Run the study; returns the exit code. Raises `CommandFailed`."""
    if arguments.list:
        _list()
        return 0
    if arguments.study is None:
        raise CommandFailed("expected a STUDY: a YAML file, or one of tiller study --list", USAGE)
    from vectors.errors import InvalidMethod, MissingDependency, VectorsError

    settings = _settings(arguments, environ)
    file = _file(arguments.study)
    folder = Path(arguments.output or f"{file.stem}-study").expanduser()
    try:
        asked = _read(file)
        data = _data(asked, file.parent, arguments.data_folder)
        records = _run(asked, file.parent, data, folder, settings, runs=not arguments.tables)
        _write_tables(asked, records, folder)
    except InvalidMethod as error:
        raise CommandFailed(f"{arguments.study}: {error}", USAGE) from None
    except MissingDependency as error:
        raise CommandFailed(str(error)) from None
    except VectorsError as error:
        raise CommandFailed(f"{arguments.study}: {error}") from None
    except OSError as error:
        raise CommandFailed(f"{error.filename or folder}: {error.strerror or error}") from None
    return _show(asked, records, folder)


def shipped_studies() -> dict[str, Path]:
    """The built-in studies, by name."""
    return {file.stem: file for file in sorted(STUDIES_DIR.glob("*.yaml"))}


def _list() -> None:
    for name, file in shipped_studies().items():
        first = file.read_text(encoding="utf-8").partition("\n")[0]
        print(f"{name:<24} {first.lstrip('# ')}")


def _file(given: str) -> Path:
    path = Path(given).expanduser()
    shipped = shipped_studies()
    if given in shipped and not path.is_file():
        return shipped[given]
    if not path.is_file():
        raise CommandFailed(f"STUDY {given}: no such file; the built-in studies are {', '.join(shipped)}", USAGE)
    return path


def _read(file: Path) -> Study:
    from vectors.study.definition import MAX_BYTES, Study

    with file.open("rb") as opened:
        content = opened.read(MAX_BYTES + 1)  # one byte more is rejected as too large
    return Study.from_yaml(content.decode("utf-8", errors="replace"), other_tasks=DEMO_TASKS)


def _data(asked: Study, base: Path, data_folder: str | None) -> StudyData:
    from vectors.study.data import read_study_data

    return read_study_data(
        asked,
        base,
        data_folder=None if data_folder is None else Path(data_folder).expanduser(),
        other_tasks={name: _demo_maker(name) for name in DEMO_TASKS},
    )


def _demo_maker(name: str) -> Callable[[], DataSet]:
    return lambda: demo_data(name)


def demo_data(name: str) -> DataSet:
    """The items of one of `DEMO_TASKS`, the same on every machine.

    In both tasks of sycophancy the user believes a wrong answer. Right is that answer, as in the paper's task, or for
    `honest` the true one.

    Facts are asked in wordings that the model never saw in training. It knows nearly all of those that it did see,
    which would leave nothing to contrast.
    """
    from server.demo.heldout import quiz_items, right_answer
    from vectors.data import ChoiceItem, DataSet

    if name == "demo/facts":
        drawn = quiz_items(_DEMO_SEED, DEMO_ITEMS, "new", "none")
    else:
        drawn = quiz_items(_DEMO_SEED, DEMO_ITEMS, "held_out", "wrong")
    items = tuple(
        ChoiceItem(
            item.question,
            item.choices,
            right_answer(item, "user" if name == "demo/sycophancy" else "truth"),
            item.context,
            line,
        )
        for line, item in enumerate(drawn, 1)
    )
    content = json.dumps([dataclasses.asdict(item) for item in items], sort_keys=True)
    return DataSet(name, hashlib.sha256(content.encode()).hexdigest(), items)


def _settings(arguments: argparse.Namespace, environ: Mapping[str, str]) -> Settings:
    from server.cli.logs import set_up_logging
    from server.config import Settings, SettingsRefused

    # the study names the model
    kept = {name: value for name, value in environ.items() if name not in ("TILLER_MODEL", "TILLER_ADAPTER")}
    try:
        settings = Settings.from_sources({"device": arguments.device, "dtype": arguments.dtype}, kept)
    except SettingsRefused as error:
        raise CommandFailed(str(error), USAGE) from None
    set_up_logging(settings.log_level, as_json=settings.log_json)
    if environ.get("TILLER_MAX_BATCH_TOKENS"):
        return settings
    return dataclasses.replace(settings, max_batch_tokens=_BATCH_TOKENS)


def _run(asked: Study, base: Path, data: StudyData, folder: Path, settings: Settings, *, runs: bool) -> Records:
    """Every model's cells: the existing ones and, with `runs`, the others too. One model is loaded at a time."""
    from vectors.study.run import read_cells, run_study
    from vectors.training.task import check_installed

    check_installed()
    cases = asked.cases(settings.dtype)
    # find cells of another study before loading any model
    records = {case: read_cells(asked, case, data, folder) for case in cases}
    for number, case in enumerate(cases, 1):
        if not runs or len(records[case]) == len(asked.cells()):
            continue
        title = f"model {number} of {len(cases)}: " if len(cases) > 1 else ""
        with _probe(case, base, settings) as view, _progress(title, can_draw=not settings.log_json) as report:
            size = _adapter_bytes(case, base)
            records[case] = run_study(asked, case, view, data, folder, report, adapter_bytes=size)
    return records


def _adapter_bytes(case: ModelCase, base: Path) -> int | None:
    """The size of the case's adapter, which has been loaded; None without one."""
    from server.engine.adapter import adapter_size

    adapter = _local(case.adapter, base)
    return None if adapter is None else adapter_size(adapter)


@contextlib.contextmanager
def _probe(case: ModelCase, base: Path, settings: Settings) -> Iterator[ModelView]:
    """The model of a case behind an engine, until the end of the context."""
    from server.cli.loading.engine import loading, readable_failures, source_of, start_engine
    from server.training.engine_view import EngineView

    model, adapter = (_local(name, base) for name in (case.model, case.adapter))
    settings = dataclasses.replace(settings, model=model, adapter=adapter, served_model_name=None)
    source = source_of(settings)
    with contextlib.ExitStack() as cleanup:
        with readable_failures(settings), loading(settings, source) as begin:
            engine, text = start_engine(settings, source, cleanup, begin)
        yield EngineView(engine, text)


def _local(name: str | None, base: Path) -> str | None:
    """The path of a folder next to the study's file; anything else unchanged."""
    if name is None:
        return None
    path = base / Path(name).expanduser()
    return str(path) if path.is_dir() else name


@contextlib.contextmanager
def _progress(title: str, *, can_draw: bool) -> Iterator[StudyReport]:
    """Shows the progress of a study: a bar that vanishes at the end, or one line per cell without a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

    console = Console(stderr=True, highlight=False)
    if not can_draw or not console.is_terminal:
        told = -1

        def tell(found: StudyProgress) -> None:
            nonlocal told
            if found.phase is None and found.num_done != told:
                told = found.num_done
                print(f"{title}{_counts(found)}; {found.label}", file=sys.stderr, flush=True)

        yield tell
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[counts]}", markup=False),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("starting", total=None, counts="")

        def draw(found: StudyProgress) -> None:
            phase = f": {found.phase.phase}" if found.phase is not None else ""
            description = f"{title}{found.label}{phase}"
            progress.update(
                task, description=description, completed=found.num_done, total=found.num_total, counts=_counts(found)
            )

        yield draw


def _counts(found: StudyProgress) -> str:
    """`120 of 400 cells, 3 without a result, about 0:45 left`."""
    parts = [f"{found.num_done} of {found.num_total} cells"]
    if found.num_failed:
        parts.append(f"{found.num_failed} without a result")
    if found.seconds_left is not None:
        minutes, seconds = divmod(round(found.seconds_left), 60)
        hours, minutes = divmod(minutes, 60)
        parts.append(f"about {f'{hours}:{minutes:02}' if hours else minutes}:{seconds:02} left")
    return ", ".join(parts)


def _write_tables(asked: Study, records: Records, folder: Path) -> None:
    from vectors.durable import make_folder, write_file
    from vectors.study.tables import study_files

    make_folder(folder)
    for name, content in study_files(asked, records).items():
        write_file(folder / name, content)


def _show(asked: Study, records: Records, folder: Path) -> int:
    """The means as a table; the exit code says whether there is any result."""
    from rich.console import Console

    from vectors.study.comparisons import comparison_means
    from vectors.study.effects import mean_rows

    found = [record for cells in records.values() for record in cells.values()]
    failed = [record for record in found if record["reason"] is not None]
    missing = len(asked.cells()) * len(records) - len(found)
    console = Console(highlight=False)
    show_means(mean_rows(asked, records), console)
    show_comparisons(comparison_means(asked, records), console)
    if failed:
        print(f"{len(failed)} of {len(found)} cells have no result; the first: {failed[0]['reason']}")
    if missing:
        print(f"{missing} cells have not been run")
    print(f"tables of all tasks, and plots: {folder / 'study.md'}")
    if len(failed) == len(found):
        print("tiller: no cell has a result", file=sys.stderr)
        return FAILED
    return 0
