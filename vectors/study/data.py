"""Reads the data of a study: built-in tasks from a folder or the hub, your own files, and other tasks.

Everything is read before anything is run, so a missing or invalid file is reported at once and not after the first
night.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from vectors.data.items import DataSet
from vectors.data.reading import read_data, read_retention
from vectors.data.tasks import TASKS, Fetch, fetch_from_hub, read_task
from vectors.errors import InvalidData
from vectors.study.definition import Study


@dataclass(frozen=True, slots=True)
class StudyData:
    """The items of every task by name, and those on which steering should change nothing."""

    tasks: Mapping[str, DataSet]
    retention: DataSet | None = None


def read_study_data(
    study: Study,
    base: Path,
    *,
    data_folder: Path | None = None,
    other_tasks: Mapping[str, Callable[[], DataSet]] | None = None,
    fetch: Fetch = fetch_from_hub,
) -> StudyData:
    """Everything that the study reads; its relative paths are below `base`.

    `data_folder` takes precedence over the study's own; without either, built-in tasks come from the hub. With `paper`
    letters they are worded as by the paper's authors. `other_tasks`
    maps the names of further tasks to functions that make their items. Raises `InvalidData` at the file and line, and
    `MissingDependency`.
    """
    makers = other_tasks or {}
    folder = data_folder
    if folder is None and study.data_folder is not None:
        folder = base / Path(study.data_folder).expanduser()
    known: dict[str, DataSet] = {}

    def read(name: str) -> DataSet:
        if name not in known:
            known[name] = (
                makers[name]()
                if name in makers
                else read_task(name, folder, as_in_paper=study.method.is_paper, fetch=fetch)
            )
        return known[name]

    tasks = {
        task.name: read(task.name) if task.file is None else read_data(_content(base, task.file), task.file)
        for task in study.tasks
    }
    if study.retention is None:
        return StudyData(tasks)
    if study.retention in TASKS or study.retention in makers:
        return StudyData(tasks, read(study.retention))
    retention, _ = read_retention(_content(base, study.retention), study.retention)
    if retention is None:
        raise InvalidData("expected questions with choices to measure retention on, got none", study.retention)
    return StudyData(tasks, retention)


def _content(base: Path, file: str) -> bytes:
    try:
        return (base / Path(file).expanduser()).read_bytes()
    except OSError as error:
        raise InvalidData(f"cannot be read: {error.strerror}", file) from None
