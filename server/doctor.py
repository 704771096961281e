"""What is wrong with a data folder, in plain words, and its repair: the vectors, the files, jobs and responses.

Nothing is deleted: what cannot be served is moved to the quarantine of its part.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from server.durable_database import PARTS, DatabaseDamaged
from server.jobs.database import JobDatabase
from server.jobs.files import FileStore
from server.response_store import ResponseStore
from server.shipped import MARKER, read_marker
from vectors.durable import PRIVATE_FILE, PRIVATE_FOLDER, keep_private, make_folder, write_file
from vectors.errors import StoreLocked
from vectors.finding import Finding
from vectors.quarantine import FOLDER, Quarantine
from vectors.store.inspection import findings_of, inspect
from vectors.store.layout import StoreLayout
from vectors.store.repair import repair

VECTORS, FILES, JOBS, RESPONSES = "vectors", "files", "jobs.sqlite3", "responses.sqlite3"
"""The parts of a data folder."""

_DOCTOR = "tiller doctor DATA_DIR --repair"


def examine(data_dir: Path) -> list[Finding]:
    """Everything that is wrong; empty for a whole folder. It reads every file whole, and changes none.

    Raises `StoreLocked` while a server uses the folder, `DatabaseRefused` for a database of a newer version, and
    `OSError`.
    """
    with _alone(data_dir):
        layout = StoreLayout(data_dir / VECTORS)
        found = findings_of(layout, inspect(layout, is_deep=True))
        found += _jobs_findings(data_dir)
        found += _responses_findings(data_dir / RESPONSES)
        if read_marker(data_dir / MARKER) is None:
            found.append(Finding(f"{MARKER} is damaged", f"the next start, or {_DOCTOR}, moves it aside"))
        return found + _open_to_others(data_dir)


def mend(data_dir: Path) -> list[str]:
    """Put right what can be put right safely; says what was done. Raises what `examine` raises, and `StorageFailed`."""
    done: list[str] = []
    with _alone(data_dir):
        layout = StoreLayout(data_dir / VECTORS)
        if layout.root.is_dir():
            done += repair(layout)
        if _responses_findings(data_dir / RESPONSES):
            ResponseStore(data_dir / RESPONSES, max_count=1).close()
            done.append(f"{RESPONSES} was moved to {FOLDER}, and a new one begun")
        if _jobs_findings(data_dir):
            done += _mend_jobs(data_dir)
        if read_marker(data_dir / MARKER) is None:
            done.append(f"{MARKER} was moved to {Quarantine(data_dir / FOLDER).take(data_dir / MARKER)}")
        if _open_to_others(data_dir):
            for part in _parts(data_dir):
                keep_private(part)
            done.append("what others could read is now its owner's only")
    return done


def _jobs_findings(data_dir: Path) -> list[Finding]:
    with _copy_of(data_dir / JOBS) as path:
        try:
            with JobDatabase(path, moves_damaged=False) as database:
                found = [
                    Finding(f"the record of the job {identifier[:80]!r} is damaged", f"{_DOCTOR} moves it aside")
                    for identifier in database.damaged_jobs()
                ]
                return [*found, *FileStore(data_dir / FILES, database, tidies=False).findings(is_deep=True)]
        except DatabaseDamaged:
            return [_damaged(JOBS)]


def _responses_findings(path: Path) -> list[Finding]:
    with _copy_of(path) as copy:
        try:
            ResponseStore(copy, max_count=1, moves_damaged=False).close()
        except DatabaseDamaged:
            return [_damaged(RESPONSES)]
    return []


def _damaged(name: str) -> Finding:
    remedy = f"put it back from a copy, or the next start, or {_DOCTOR}, moves it aside and begins a new one"
    return Finding(f"{name} is damaged", remedy)


def _mend_jobs(data_dir: Path) -> list[str]:
    done: list[str] = []
    try:
        JobDatabase(data_dir / JOBS, moves_damaged=False).close()
    except DatabaseDamaged:
        done.append(f"{JOBS} was moved to {FOLDER}, and a new one begun")
    with JobDatabase(data_dir / JOBS) as database:
        done += [_take_job(data_dir, database, identifier) for identifier in database.damaged_jobs()]
        return [*done, *FileStore(data_dir / FILES, database).repair()]


def _take_job(data_dir: Path, database: JobDatabase, identifier: str) -> str:
    """Write everything that is known of a job to the quarantine and delete it from the database; says so."""
    note = data_dir / FOLDER / f"job-{hashlib.sha256(identifier.encode()).hexdigest()[:24]}.json"
    make_folder(note.parent, mode=PRIVATE_FOLDER)
    rows = database.rows_of_job(identifier)
    write_file(note, json.dumps(rows, indent=1, default=bytes.hex).encode(), mode=PRIVATE_FILE)
    database.drop_job(identifier)
    return f"the record of the job {identifier[:80]!r} was moved to {note.relative_to(data_dir)}"


@contextlib.contextmanager
def _copy_of(path: Path) -> Iterator[Path]:
    """A copy of a database, or the place of a new one, that may be opened without changing anything."""
    with tempfile.TemporaryDirectory(prefix="tiller-doctor-") as folder:
        for part in PARTS:
            original = path.with_name(path.name + part)
            if original.is_file():
                shutil.copy(original, folder)
        yield Path(folder) / path.name


@contextlib.contextmanager
def _alone(data_dir: Path) -> Iterator[None]:
    """Keep servers from opening the vectors meanwhile, where there are any. Raises `StoreLocked`."""
    lock = StoreLayout(data_dir / VECTORS).lock
    if not lock.exists():
        yield
        return
    with lock.open("rb") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StoreLocked(f"a server uses {data_dir}: stop it first") from None
        yield


def _parts(data_dir: Path) -> list[Path]:
    return [path for path in sorted(data_dir.iterdir()) if path.name in _OURS]


_OURS = frozenset({VECTORS, FILES, JOBS, RESPONSES, FOLDER, MARKER})


def _open_to_others(data_dir: Path) -> list[Finding]:
    exposed = [
        path
        for part in _parts(data_dir)
        for path in (part, *part.rglob("*"))
        if not path.is_symlink() and stat.S_IMODE(path.stat().st_mode) & 0o077
    ]
    if not exposed:
        return []
    problem = f"others than the owner can read {exposed[0].relative_to(data_dir)}"
    more = f" and {len(exposed) - 1} more" if len(exposed) > 1 else ""
    return [Finding(problem + more, f"the next start, or {_DOCTOR}, makes them its owner's only")]
