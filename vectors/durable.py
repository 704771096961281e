"""Files and folders that survive a kill and a power loss, and that only their owner can read.

A disk that refuses is a `StorageFailed`, or `StorageFull`, in the functions that say so.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

from vectors.errors import StorageFailed, StorageFull

_log = logging.getLogger(__name__)

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})

PRIVATE_FILE = 0o600
"""The mode of a file that only its owner may read."""

PRIVATE_FOLDER = 0o700
"""The mode of a folder that only its owner may enter."""


@contextlib.contextmanager
def storing(what: str) -> Iterator[None]:
    """Turn an `OSError` into `StorageFull` or `StorageFailed`, and log it with its path.

    `what` names what the disk holds, for the message: `the vectors`.
    """
    try:
        yield
    except OSError as error:
        _log.error("cannot store %s: %s", what, error)
        raise storage_error(what, error) from error


def storage_error(what: str, error: OSError) -> StorageFailed:
    """The error for what the system said about the disk that holds `what`."""
    said = error.strerror or str(error)
    if error.errno in _FULL:
        return StorageFull(f"the disk that holds {what} is full ({said}); nothing was changed")
    return StorageFailed(f"the disk that holds {what} failed ({said}); nothing was changed")


def make_folder(folder: Path, *, mode: int = 0o777) -> None:
    """Create `folder` and any missing parents, each of them durable. Raises `OSError`."""
    if not folder.parent.is_dir():
        make_folder(folder.parent, mode=mode)
    folder.mkdir(mode=mode, exist_ok=True)
    flush_folder(folder.parent)


def keep_private(folder: Path) -> None:
    """Take from everybody but the owner what they may do with `folder` and everything in it.

    What belongs to somebody else stays as it is, with a warning.
    """
    for path in (folder, *sorted(folder.rglob("*"))):
        keep_file_private(path)


def keep_file_private(path: Path) -> None:
    """`keep_private` for one file or folder; a link and a missing file stay as they are."""
    try:
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode) or not mode & 0o077:
            return
        path.chmod(stat.S_IMODE(mode) & ~0o077)
    except FileNotFoundError:
        return
    except OSError as error:
        _log.warning("%s can be read by others: %s", path, error.strerror or error)


def flush_folder(folder: Path) -> None:
    """Make what was created, renamed or removed in `folder` durable. Raises `OSError`."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_file(path: Path, content: bytes, *, mode: int = 0o666) -> None:
    """Write `content` to `path`, durable when this returns; after an earlier crash, the file is whole or as it was.

    Raises `OSError`.
    """
    replace_file(path, content, mode=mode)
    flush_folder(path.parent)


def replace_file(path: Path, content: bytes, *, mode: int = 0o666) -> None:
    """`write_file` for callers that flush the folder themselves: before that, the file may still be as it was."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):  # what is left is removed when the store is next opened
            temporary.unlink(missing_ok=True)
        raise
