"""What a file of `names/` says: the current revision of a name and its history; and how such a file is called."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from vectors.errors import InvalidRevision, InvalidVectorName, RevisionNotFound
from vectors.vocabulary import MIN_REVISION_DIGITS, REVISION_PATTERN, check_name

_REVISION = re.compile(r"[0-9a-f]{64}")
_PREFIX = re.compile(REVISION_PATTERN)


@dataclass(frozen=True, slots=True)
class RevisionRecord:
    """One entry of a name's history. `created_at` in Unix seconds, `num_bytes` of the canonical file."""

    revision: str
    created_at: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class NameRecord:
    """The current revision of a name, and every revision of it, newest first."""

    current: str
    history: tuple[RevisionRecord, ...]

    def find(self, name: str, prefix: str | None) -> RevisionRecord:
        """The revision of `name` that begins with `prefix`, by default the current one.

        Raises `InvalidRevision` and `RevisionNotFound`.
        """
        if prefix is None:
            prefix = self.current
        prefix = prefix.lower()
        if _PREFIX.fullmatch(prefix) is None:
            raise InvalidRevision(
                f"{prefix[:80]!r} is not a revision: expected {MIN_REVISION_DIGITS} or more leading hex digits of one"
            )
        found = [record for record in self.history if record.revision.startswith(prefix)]
        if not found:
            raise RevisionNotFound(name, prefix)
        if len(found) > 1:
            raise InvalidRevision(f"revision {prefix!r} of {name!r} is ambiguous: {len(found)} revisions begin with it")
        return found[0]

    def without(self, revisions: frozenset[str]) -> NameRecord | None:
        """The record without those revisions; None if none is left. The newest of the others is current if need be."""
        history = tuple(record for record in self.history if record.revision not in revisions)
        if not history:
            return None
        return NameRecord(history[0].revision if self.current in revisions else self.current, history)

    def encode(self) -> bytes:
        """The content of the name's file."""
        history = [
            {"revision": record.revision, "created_at": record.created_at, "bytes": record.num_bytes}
            for record in self.history
        ]
        return json.dumps({"current": self.current, "history": history}, indent=1).encode()


def decode_name_record(content: bytes) -> NameRecord | None:
    """What a name's file says; None if it is damaged."""
    try:
        entry = json.loads(content)
        history = tuple(
            RevisionRecord(str(old["revision"]), int(old["created_at"]), int(old["bytes"])) for old in entry["history"]
        )
        record = NameRecord(str(entry["current"]), history)
        if not all(is_revision(revision) for revision in (record.current, *(old.revision for old in history))):
            return None
        record.find("", None)
    except (ValueError, OverflowError, RecursionError, KeyError, TypeError, InvalidRevision, RevisionNotFound):
        return None
    return record


def is_revision(text: str) -> bool:
    """True for 64 hex digits."""
    return _REVISION.fullmatch(text) is not None


def file_stem(name: str) -> str:
    """A name as the stem of a file: a capital is written ^ and its small letter."""
    return re.sub("[A-Z]", lambda capital: "^" + capital[0].lower(), name)


def name_of(stem: str) -> str | None:
    """The name whose file has that stem; None if no name has."""
    name = re.sub(r"\^([a-z])", lambda letter: letter[1].upper(), stem)
    try:
        check_name(name)
    except InvalidVectorName:
        return None
    return name if file_stem(name) == stem else None
