"""repair: put a store right as far as that is safe. It moves files into quarantine and deletes none."""

from __future__ import annotations

from pathlib import Path

from vectors.durable import PRIVATE_FILE, PRIVATE_FOLDER, make_folder, write_file
from vectors.store.generation import Generation
from vectors.store.inspection import Inspection, inspect
from vectors.store.layout import StoreLayout


def put_back(layout: StoreLayout, found: Inspection) -> list[str]:
    """Fetch revisions that are damaged or missing from the quarantine, where a whole copy lies there.

    Says what was done, and takes it out of `found`. Raises `OSError`.
    """
    done = []
    for revision in list(found.damaged_revisions):
        path = layout.object_path(revision)
        for copy in layout.quarantine.copies(path.name):
            content = copy.read_bytes() if copy.is_file() else b""
            if not layout.is_object(revision, content):
                continue
            if path.exists():
                layout.quarantine.take(path)
            write_file(path, content, mode=PRIVATE_FILE)
            del found.damaged_revisions[revision]
            done.append(f"{layout.shown(path)} was put back from {layout.shown(copy)}")
            break
    return done


def repair(layout: StoreLayout) -> list[str]:
    """Move aside what is damaged, foreign or of no name, let names go without it, and accept the names that are left.

    A name whose current revision is damaged goes back to its newest whole one; a name without any goes aside too. Says
    what was done. Raises `OSError`.
    """
    for folder in (layout.objects, layout.names):
        make_folder(folder, mode=PRIVATE_FOLDER)
    found = inspect(layout, is_deep=True)
    done = put_back(layout, found)
    aside = [*found.foreign, *(layout.name_path(name) for name in found.damaged_names)]
    damaged = frozenset(found.damaged_revisions)
    for name, known in found.names.items():
        if damaged.isdisjoint(record.revision for record in known.history):
            continue
        left = known.without(damaged)
        if left is None:
            aside.append(layout.name_path(name))
            continue
        write_file(layout.name_path(name), left.encode(), mode=PRIVATE_FILE)
        gone = len(known.history) - len(left.history)
        now = f", and is now at {left.current[:12]}" if left.current != known.current else ""
        done.append(f"{name!r} lost {gone} damaged revision{'' if gone == 1 else 's'}{now}")
    aside += [path for revision in damaged if (path := layout.object_path(revision)).exists()]
    for path in aside:
        done.append(_move_aside(layout, path))
    found = inspect(layout)
    done += [_move_aside(layout, path) for path in found.orphans]
    if not found.is_whole:
        done.append("the names that are there were accepted as the store's")
        number = found.generation.number if found.generation is not None else 0
        Generation(number, found.checksum, found.checksum).write(layout.generation)
    return done


def _move_aside(layout: StoreLayout, path: Path) -> str:
    return f"{layout.shown(path)} was moved to {layout.shown(layout.quarantine.take(path))}"
