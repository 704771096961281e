"""OpenedPaths: whether the files and folders that a process keeps using are still where it opened them.

Where a folder was moved away, deleted, replaced or hidden by another mount, what was opened in it can still be used: it
would be read and written without anybody ever finding it.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterable
from pathlib import Path

from vectors.errors import StorageGone


class OpenedPaths:
    """Where `paths` are now. `holds`: what they hold, for messages: `the vectors`. Messages show paths within `root`.

    Folders are kept open as long as this lives, since the system gives the number of one that is gone to the next that
    is made. Files must be kept open by whoever uses them. Raises `OSError` for a path that is missing.
    """

    def __init__(self, holds: str, root: Path, paths: Iterable[Path]) -> None:
        self._holds = holds
        self._root = root
        self._numbers = {path: _numbers_of(path) for path in paths}
        for path in self._numbers:
            if path.is_dir():
                weakref.finalize(self, os.close, os.open(path, os.O_RDONLY | os.O_DIRECTORY))

    def check(self) -> None:
        """Raise `StorageGone` unless every path is what it was, which it may be again later."""
        for path, numbers in self._numbers.items():
            try:
                found = _numbers_of(path)
            except OSError as error:
                raise self._gone(path, f"cannot be found ({error.strerror})") from None
            if found != numbers:
                raise self._gone(path, "is another than the one that was opened")

    def _gone(self, path: Path, how: str) -> StorageGone:
        shown = path.relative_to(self._root).as_posix()
        return StorageGone(
            f"cannot use {self._holds}: {shown} in the data folder {how}; "
            "put back the folder that was opened, or restart with the one that is there; nothing was changed"
        )


def _numbers_of(path: Path) -> tuple[int, int]:
    """The numbers by which the system knows a file."""
    status = os.stat(path)
    return status.st_dev, status.st_ino
