"""Quarantine: where files go that are damaged, or that nothing refers to. Nothing in it is ever deleted.

A file keeps its name, with a number where that is taken, so that it can be found and put back.
"""

from __future__ import annotations

from pathlib import Path

from vectors.durable import PRIVATE_FOLDER, flush_folder, make_folder

FOLDER = "quarantine"
"""Its name beside what it serves."""


class Quarantine:
    """The folder `folder`, made when the first file comes. Every method may raise `OSError`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def take(self, path: Path) -> Path:
        """Move a file or folder here; returns where it is now. Durable when this returns."""
        make_folder(self.folder, mode=PRIVATE_FOLDER)
        target, number = self.folder / path.name, 1
        while target.exists():
            target, number = self.folder / f"{path.name}.{number}", number + 1
        path.rename(target)
        for folder in (self.folder, path.parent):
            flush_folder(folder)
        return target

    def copies(self, name: str) -> list[Path]:
        """The files here that had that name."""
        if not self.folder.is_dir():
            return []
        return sorted(path for path in self.folder.iterdir() if path.name == name or path.name.startswith(f"{name}."))
