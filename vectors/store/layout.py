"""StoreLayout: how a store lies on the disk, and reading single files of it.

root/lock                             held while a process has the store open
root/objects/{revision}.safetensors   canonical content, written once
root/names/{name}.json                the current revision and the history, newest first; a capital in the name is
                                      written ^ and its small letter, since some disks see no difference
root/generation.json                  a checksum over the files of names/, by which a store knows itself to be whole
root/quarantine/                      files that were moved aside
"""

from __future__ import annotations

import errno
import re
from pathlib import Path

from vectors.durable import storage_error
from vectors.errors import InvalidVector, StoreCorrupt
from vectors.formats import ImportOptions
from vectors.formats.safetensors import decode_safetensors
from vectors.quarantine import FOLDER, Quarantine
from vectors.store.records import file_stem
from vectors.vector import SteeringVector

HOLDS = "the vectors"
"""What the disk of a store holds, in messages."""

_GONE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP})
_BROKEN = frozenset({errno.EIO, errno.EACCES, errno.EPERM, errno.EUCLEAN, errno.ESTALE, errno.ENODATA})
_TEMPORARY = re.compile(r"(?:[0-9a-f]{64}\.safetensors|[A-Za-z0-9^._-]+\.json)\.\d+\.\d+\.tmp")


class StoreLayout:
    """The paths of the store under `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.objects = root / "objects"
        self.names = root / "names"
        self.lock = root / "lock"
        self.generation = root / "generation.json"
        self.quarantine = Quarantine(root / FOLDER)

    def object_path(self, revision: str) -> Path:
        """Where a revision's content is."""
        return self.objects / f"{revision}.safetensors"

    def name_path(self, name: str) -> Path:
        """Where a name's record is."""
        return self.names / f"{file_stem(name)}.json"

    def shown(self, path: Path) -> str:
        """A path as messages show it: within the data folder, since clients need not know where that is."""
        return path.relative_to(self.root.parent).as_posix()

    def read_object(self, revision: str) -> tuple[bytes, SteeringVector]:
        """A revision's file and the vector in it, whose hash is checked.

        Raises `StoreCorrupt`, and `StorageFailed` where the system lacks what it needs to read.
        """
        path = self.object_path(revision)
        try:
            content = path.read_bytes()
        except OSError as error:
            if error.errno in _GONE:
                raise StoreCorrupt(f"{self.shown(path)} is missing") from None
            if error.errno in _BROKEN:
                raise StoreCorrupt(f"{self.shown(path)} cannot be read: {error.strerror}") from None
            raise storage_error(HOLDS, error) from error
        try:
            return content, _vector_of(revision, content)
        except InvalidVector as error:
            raise StoreCorrupt(f"{self.shown(path)} is damaged: {error}") from None

    def is_object(self, revision: str, content: bytes) -> bool:
        """True if `content` is the whole file of the revision."""
        try:
            _vector_of(revision, content)
        except InvalidVector:
            return False
        return True


def is_temporary(path: Path) -> bool:
    """True for a file that a write of this store left unfinished."""
    return _TEMPORARY.fullmatch(path.name) is not None


def _vector_of(revision: str, content: bytes) -> SteeringVector:
    vector = decode_safetensors(content, ImportOptions())
    if vector.revision != revision:
        raise InvalidVector("its content does not match its hash")
    return vector
