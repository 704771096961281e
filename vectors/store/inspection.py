"""inspect: what lies in a store, and what is wrong with it. It only reads.

The store opens with it, and `tiller doctor` reports it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from vectors.errors import StoreCorrupt
from vectors.finding import Finding
from vectors.store.generation import Generation, checksum_of, file_checksum, read_generation
from vectors.store.layout import StoreLayout, is_temporary
from vectors.store.records import NameRecord, decode_name_record, file_stem, is_revision, name_of

DOCTOR = "tiller doctor DATA_DIR --repair"


@dataclass
class Inspection:
    """What lies in a store.

    `names`: what can be read. `parts`: each name's part of the checksum (see `generation`), damaged names included.
    `damaged_names`: what is wrong with a name's file. `damaged_revisions`: what is wrong with a revision that a name
    has. `orphans`: objects of no name. `foreign`: what is not the store's. `leftovers`: writes that were cut short.
    """

    names: dict[str, NameRecord] = field(default_factory=dict)
    parts: dict[str, int] = field(default_factory=dict)
    damaged_names: dict[str, str] = field(default_factory=dict)
    damaged_revisions: dict[str, str] = field(default_factory=dict)
    orphans: list[Path] = field(default_factory=list)
    foreign: list[Path] = field(default_factory=list)
    leftovers: list[Path] = field(default_factory=list)
    generation: Generation | None = None

    @property
    def checksum(self) -> int:
        """That of the files of names."""
        return checksum_of(self.parts)

    @property
    def is_whole(self) -> bool:
        """True if the names are those that the store last knew, and all of them can be read."""
        return not self.damaged_names and self.generation is not None and self.generation.allows(self.checksum)

    @property
    def is_new(self) -> bool:
        """True for a store without a generation that shows no sign of a loss."""
        return self.generation is None and (bool(self.parts) or not self.orphans)


def inspect(layout: StoreLayout, *, is_deep: bool = False) -> Inspection:
    """What lies in the store; missing folders are empty. `is_deep`: read every revision and check its hash.

    Raises `OSError` if the disk does not even list its files.
    """
    found = Inspection(generation=read_generation(layout.generation))
    found.leftovers += [path for path in _listed(layout.root) if is_temporary(path)]
    for path in _listed(layout.names):
        _inspect_name(layout, path, found)
    referenced = {record.revision: record.num_bytes for known in found.names.values() for record in known.history}
    for path in _listed(layout.objects):
        if is_temporary(path):
            found.leftovers.append(path)
        elif path.suffix != ".safetensors" or not is_revision(path.stem):
            found.foreign.append(path)
        elif path.stem not in referenced:
            found.orphans.append(path)
    for revision, num_bytes in referenced.items():
        reason = _damage_of(layout, revision, num_bytes, is_deep=is_deep)
        if reason is not None:
            found.damaged_revisions[revision] = reason
    return found


def findings_of(layout: StoreLayout, found: Inspection) -> list[Finding]:
    """What is wrong, in words; empty for a whole store."""
    findings = [
        Finding(reason, f"put {name!r} again, or let {DOCTOR} move the file aside")
        for name, reason in found.damaged_names.items()
    ]
    for name, known in found.names.items():
        for record in known.history:
            reason = found.damaged_revisions.get(record.revision)
            if reason is not None:
                is_current = record.revision == known.current
                which = "current" if is_current else "an older"
                then = "goes back to its newest whole revision" if is_current else "loses this revision"
                findings.append(
                    Finding(
                        f"{name!r}, {which} revision {record.revision[:12]}: {reason}",
                        f"put the file back from a copy, or let {DOCTOR} move it aside: the name then {then}",
                    )
                )
    findings += [
        Finding(f"{layout.shown(path)} is not a file of the store", f"move it away, or let {DOCTOR} move it aside")
        for path in found.foreign
    ]
    if not found.is_whole and not found.is_new:
        findings.append(_loss(layout, found))
    elif found.orphans:
        findings.append(
            Finding(
                f"{_count(len(found.orphans), 'object')} in {layout.shown(layout.objects)} belong to no name",
                f"a write was cut short; the next start, or {DOCTOR}, moves them to {_quarantine(layout)}",
            )
        )
    return findings


def _loss(layout: StoreLayout, found: Inspection) -> Finding:
    what = f"{layout.shown(layout.names)} is not as the store left it"
    if not found.parts:
        what = f"{layout.shown(layout.names)} has no names"
    elif found.generation is None:
        what = f"{layout.shown(layout.generation)} is missing or damaged"
    return Finding(
        f"{what}, and {_count(len(found.orphans), 'object')} in {layout.shown(layout.objects)} belong to no name",
        f"nothing was removed: put the names back, or let {DOCTOR} accept those that are there",
    )


def _quarantine(layout: StoreLayout) -> str:
    return layout.shown(layout.quarantine.folder)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except FileNotFoundError:
        return []


def _inspect_name(layout: StoreLayout, path: Path, found: Inspection) -> None:
    if is_temporary(path):
        found.leftovers.append(path)
        return
    name = name_of(path.stem) if path.suffix == ".json" else None
    if name is None:
        found.foreign.append(path)
        return
    try:
        content = path.read_bytes()
    except OSError as error:
        found.parts[name] = 0
        found.damaged_names[name] = f"{layout.shown(path)} cannot be read: {error.strerror}"
        return
    found.parts[name] = file_checksum(file_stem(name), content)
    record = decode_name_record(content)
    if record is None:
        found.damaged_names[name] = f"{layout.shown(path)} is damaged"
    else:
        found.names[name] = record


def _damage_of(layout: StoreLayout, revision: str, num_bytes: int, *, is_deep: bool) -> str | None:
    """What is wrong with a revision; None if it is whole."""
    path = layout.object_path(revision)
    if is_deep:
        try:
            layout.read_object(revision)
        except StoreCorrupt as error:
            return str(error)
        return None
    if not path.is_file():
        return f"{layout.shown(path)} is missing"
    size = path.stat().st_size
    return None if size == num_bytes else f"{layout.shown(path)} is damaged: expected {num_bytes} bytes, got {size}"
