"""Generation: what a store remembers of the files of its names, so that it notices when some are not its own.

The checksum of a set of files is the exclusive or of the SHA-256 of each file's stem and content. It changes with every
file that is added, changed, lost or taken from an older copy, and one change of one name needs only the hashes of that
name. `generation.json` is written before a name changes and tells the checksum before and after, so that a crash
between the two files is no surprise. Where it is missing (a store of an earlier version) or damaged, the store does not
know itself to be whole.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vectors.durable import PRIVATE_FILE, write_file


@dataclass(frozen=True, slots=True)
class Generation:
    """The checksums that the files of names may have: `after` the last change, or `before` it if that was cut short.

    `number` counts changes.
    """

    number: int
    before: int
    after: int

    def allows(self, checksum: int) -> bool:
        """True if these are the files that the store last knew."""
        return checksum in (self.before, self.after)

    def next(self, change: int) -> Generation:
        """The generation of a change that turns the checksum c into c ^ `change`."""
        return Generation(self.number + 1, self.after, self.after ^ change)

    def settled(self, checksum: int) -> Generation:
        """The same, knowing whether the last change was made; unchanged where the files are others."""
        return Generation(self.number, checksum, checksum) if self.allows(checksum) else self

    def write(self, path: Path) -> None:
        """Make it durable. Raises `OSError`."""
        entry = {"number": self.number, "before": f"{self.before:064x}", "after": f"{self.after:064x}"}
        write_file(path, json.dumps(entry, indent=1).encode(), mode=PRIVATE_FILE)


def read_generation(path: Path) -> Generation | None:
    """What the file says; None if it is missing or damaged. Raises `OSError` if it cannot be read."""
    try:
        entry = json.loads(path.read_bytes())
        return Generation(int(entry["number"]), int(entry["before"], 16), int(entry["after"], 16))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def file_checksum(stem: str, content: bytes) -> int:
    """One file's part of the checksum."""
    return int.from_bytes(hashlib.sha256(stem.encode() + b"\0" + content).digest())


def checksum_of(parts: Mapping[str, int]) -> int:
    """The checksum of all files, from that of each."""
    total = 0
    for part in parts.values():
        total ^= part
    return total
