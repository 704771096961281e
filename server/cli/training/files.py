"""The files of a training command: the labelled data, and the folder for the report."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from server.cli.errors import USAGE, CommandFailed
from server.cli.training.options import TASK_PREFIX

if TYPE_CHECKING:
    from vectors.data import DataSet

REPORT = "report.json"

ANSWERS = "answers.jsonl"

_PLOTS = ("accuracy", "adaptive", "auc", "baselines", "calibration", "dose", "gain-*", "grid-*", "sizes")

_OTHERS = ("outcomes.jsonl", ANSWERS, *(f"{plot}.png" for plot in _PLOTS))


def read_file(path: Path) -> bytes:
    """A file's bytes. Raises `CommandFailed`."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise CommandFailed(f"{path} cannot be read: {error.strerror}") from None


def published_task(place: str, folder: str | None, *, as_in_paper: bool) -> DataSet | None:
    """The task that `task:NAME` names, from `folder` or the hub; None when `place` is a file. Raises `VectorsError`.

    `as_in_paper`: in the wording of the paper's authors.
    """
    if not place.startswith(TASK_PREFIX):
        return None
    from vectors.data import read_task

    below = None if folder is None else Path(folder).expanduser()
    return read_task(place.removeprefix(TASK_PREFIX), below, as_in_paper=as_in_paper)


def upload_of(place: str, folder: str | None, *, as_in_paper: bool) -> tuple[str, bytes]:
    """The name and bytes of data to upload; a task becomes JSONL. Raises `CommandFailed`."""
    if not place.startswith(TASK_PREFIX):
        path = Path(place).expanduser()
        return path.name, read_file(path)
    from vectors.errors import VectorsError

    try:
        task = published_task(place, folder, as_in_paper=as_in_paper)
    except VectorsError as error:
        raise CommandFailed(str(error)) from None
    assert task is not None
    return f"{task.name.replace('/', '-')}.jsonl", _jsonl(task.items)


def _jsonl(items: Iterable[Any]) -> bytes:
    """One choice item per line; tasks have no others."""
    lines = []
    for item in items:
        # a name that says how it counts, since a file whose answers are all the same number does not show it
        row = {"question": item.question, "choices": list(item.choices), "answer_index": item.answer}
        if item.context is not None:
            row["context"] = item.context
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    return "".join(lines).encode()


class OutputFolder:
    """The folder for a run's files. Files of an earlier run are an error, or replaced with `force`.

    `vector` is the file name for the vector, None if none is made. Raises `CommandFailed`.
    """

    def __init__(self, folder: Path, *, vector: str | None, force: bool) -> None:
        self.folder = folder
        self.vector = vector
        self._names = [REPORT, *_OTHERS, *([vector] if vector is not None else [])]
        if folder.exists() and not folder.is_dir():
            raise CommandFailed(f"{folder} is a file; name a folder with --output", USAGE)
        nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):  # reported before the work, not after it
            raise CommandFailed(f"{folder} cannot be written; name another folder with --output", USAGE)
        if not force and (taken := self._earlier()):
            raise CommandFailed(
                f"{taken[0]} already exists; use --force to overwrite earlier files, or another --output", USAGE
            )

    def write(self, files: Iterable[tuple[str, bytes]]) -> list[Path]:
        """Replace an earlier run's files with these, and return where they are. Raises `CommandFailed`."""
        written = []
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for path in self._earlier():  # an earlier vector must not remain next to a report that advises against it
                path.unlink()
            for name, content in files:
                path = self.folder / name
                path.write_bytes(content)
                written.append(path)
        except OSError as error:
            raise CommandFailed(f"{error.filename or self.folder} cannot be written: {error.strerror}") from None
        return written

    def _earlier(self) -> list[Path]:
        return [path for name in self._names for path in sorted(self.folder.glob(name))]
