"""Files and folders that survive a kill and a power loss."""

from __future__ import annotations

import os
import threading
from pathlib import Path


def make_folder(folder: Path) -> None:
    """Create `folder` and any missing parents, each of them durable."""
    if not folder.parent.is_dir():
        make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    flush_folder(folder.parent)


def flush_folder(folder: Path) -> None:
    """Make what was created, renamed or removed in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_file(path: Path, content: bytes) -> None:
    """Write `content` to `path`, durable when this returns; after an earlier crash, the file is whole or as it was."""
    replace_file(path, content)
    flush_folder(path.parent)


def replace_file(path: Path, content: bytes) -> None:
    """`write_file` for callers that flush the folder themselves: before that, the file may still be as it was."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
