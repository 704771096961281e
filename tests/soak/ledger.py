"""What a server acknowledged, and what therefore must be found, also after it was killed.

A change is begun before it is sent and done when it is acknowledged. One that a kill cut short may have been made,
whole, or not: what is found is one of both, and holds from then on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

FINAL = ("succeeded", "failed", "cancelled")
"""States in which a job stays."""


class SoakFailed(Exception):
    """The server did what it must not; the message says what."""


@dataclass(frozen=True)
class Name:
    """A vector: its current revision, and all of its revisions, newest first."""

    current: str
    history: tuple[str, ...]

    @staticmethod
    def put(known: Name | None, revision: str) -> Name:
        """After a put of a content."""
        if known is None:
            return Name(revision, (revision,))
        if known.current == revision:
            return known
        return Name(revision, (revision, *(other for other in known.history if other != revision)))

    def rolled_back(self, revision: str) -> Name:
        """After a rollback to a revision of the history."""
        return Name(revision, self.history)


@dataclass
class Job:
    """A job that was created: what is asked of it, its name, and how far it is known to be."""

    kind: Literal["good", "bad"]
    name: str
    is_cancelled: bool = False
    """True when a cancellation was acknowledged."""
    may_be_cancelled: bool = False
    """True when a cancellation was sent, and a kill took the answer."""
    num_kills: int = 0
    """How often the server was killed since."""
    status: str | None = None
    """The final state that was seen."""

    def check_end(self, status: str, code: str | None) -> None:
        """Raises `SoakFailed` unless the job may end so."""
        if self.status not in (None, status):
            raise SoakFailed(f"the job {self.name} had {self.status}, and now it has {status}")
        expected = {"succeeded" if self.kind == "good" else "failed"}
        if self.is_cancelled:
            expected = {"cancelled"}
        elif self.may_be_cancelled:
            expected.add("cancelled")
        is_interrupted = (status, code) == ("failed", "interrupted")
        if is_interrupted and self.num_kills >= MAX_STARTS:
            return
        if status not in expected or is_interrupted:
            raise SoakFailed(f"the {self.kind} job {self.name}: expected {expected}, got {status} ({code})")


MAX_STARTS = 3
"""A job that was interrupted so often by kills fails, as the documents say."""


@dataclass
class Ledger:
    """What must be there: vectors by name, files by id, jobs by id."""

    vectors: dict[str, Name] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    """The SHA-256 of each content."""
    jobs: dict[str, Job] = field(default_factory=dict)
    num_acknowledged: int = 0
    num_unsure: int = 0
    """Changes that a kill cut short."""
    _changes: dict[str, Name | None] = field(default_factory=dict)
    _uploads: set[str] = field(default_factory=set)
    _deletions: set[str] = field(default_factory=set)
    _creations: dict[str, Job] = field(default_factory=dict)

    def begin_change(self, name: str, after: Name | None) -> None:
        """A vector is about to become `after`; None: to be deleted."""
        self._changes[name] = after

    def end_change(self, name: str, *, is_made: bool) -> None:
        """The server answered."""
        after = self._changes.pop(name)
        if is_made:
            self.num_acknowledged += 1
            if after is None:
                self.vectors.pop(name, None)
            else:
                self.vectors[name] = after

    def begin_upload(self, filename: str) -> None:
        """A file is about to be sent, whose name no other has."""
        self._uploads.add(filename)

    def end_upload(self, filename: str, identifier: str | None, content: bytes) -> None:
        """The server answered with the file's id, or refused it."""
        self._uploads.discard(filename)
        if identifier is not None:
            self.add_file(identifier, content)

    def add_file(self, identifier: str, content: bytes) -> None:
        """A file is there."""
        self.num_acknowledged += 1
        self.files[identifier] = hashlib.sha256(content).hexdigest()

    def begin_deletion(self, identifier: str) -> None:
        """A file is about to be deleted."""
        self._deletions.add(identifier)

    def end_deletion(self, identifier: str, *, is_made: bool) -> None:
        """The server answered."""
        self._deletions.discard(identifier)
        if is_made:
            self.num_acknowledged += 1
            del self.files[identifier]

    def begin_job(self, job: Job) -> None:
        """A job is about to be created, whose name no other has."""
        self._creations[job.name] = job

    def end_job(self, name: str, identifier: str | None) -> None:
        """The server answered with the job's id, or refused it."""
        job = self._creations.pop(name)
        if identifier is not None:
            self.num_acknowledged += 1
            self.jobs[identifier] = job

    def note_kill(self) -> None:
        """The server was killed."""
        self.num_unsure += len(self._changes) + len(self._uploads) + len(self._deletions) + len(self._creations)
        for job in self.jobs.values():
            job.num_kills += job.status is None

    @property
    def open_jobs(self) -> dict[str, Job]:
        """Those that have not been seen to end."""
        return {identifier: job for identifier, job in self.jobs.items() if job.status is None}

    def settle_vectors(self, found: Mapping[str, Name]) -> None:
        """Compare with what is there, and take over what a kill left open. Raises `SoakFailed`."""
        training = {job.name for job in self.jobs.values() if job.status is None}
        for name in sorted({*self.vectors, *found, *self._changes}):
            allowed = [self.vectors.get(name)]
            if name in self._changes:
                allowed.append(self._changes[name])
            seen = found.get(name)
            if seen in allowed:
                self._adopt(name, seen)
            elif not (name in training and name not in self.vectors):
                raise SoakFailed(f"the vector {name}: expected {_either(allowed)}, found {seen}")
        self._changes.clear()

    def _adopt(self, name: str, seen: Name | None) -> None:
        if seen is None:
            self.vectors.pop(name, None)
        else:
            self.vectors[name] = seen

    def settle_files(self, found: Mapping[str, str], contents: Mapping[str, str]) -> None:
        """Compare with what is there: names by id, and the SHA-256 of each content by id. Raises `SoakFailed`."""
        for identifier, sha256 in list(self.files.items()):
            if identifier not in found and identifier in self._deletions:
                del self.files[identifier]
            elif contents.get(identifier) != sha256:
                raise SoakFailed(f"the file {identifier} is {'changed' if identifier in found else 'lost'}")
        for identifier, filename in found.items():
            if identifier not in self.files:
                if filename not in self._uploads:
                    raise SoakFailed(f"the file {identifier} ({filename}) was deleted or never sent")
                self.files[identifier] = contents[identifier]
        self._uploads.clear()
        self._deletions.clear()

    def settle_jobs(self, found: Mapping[str, str], names: Mapping[str, str]) -> None:
        """Compare with the states and names that are there, by id. Raises `SoakFailed`.

        To be called before the others.
        """
        for identifier in found.keys() - self.jobs.keys():
            if names[identifier] not in self._creations:
                raise SoakFailed(f"the job {names[identifier]} ({identifier}) was never created")
            self.jobs[identifier] = self._creations[names[identifier]]
        self._creations.clear()
        for identifier, job in self.jobs.items():
            if identifier not in found:
                raise SoakFailed(f"the job {job.name} ({identifier}) is lost")
            if job.status is not None and found[identifier] != job.status:
                raise SoakFailed(f"the job {job.name} had {job.status}, and now it has {found[identifier]}")


def _either(allowed: list[Name | None]) -> str:
    return " or ".join(map(str, allowed))
