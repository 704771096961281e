"""Puts the embedded model's vectors into the registry, and replaces those of an earlier release.

A marker file records what was shipped, so names that the user took, changed or deleted are left alone. A damaged marker
is moved aside; then every name that is taken is left alone.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

from vectors.applied import SteerableModel
from vectors.durable import PRIVATE_FILE, keep_file_private, write_file
from vectors.errors import StorageFailed, StoreCorrupt
from vectors.formats import decode
from vectors.quarantine import FOLDER, Quarantine
from vectors.store import VectorStore

MARKER = "shipped-vectors.json"

_log = logging.getLogger(__name__)


def put_shipped_vectors(store: VectorStore, folder: Path, data_dir: Path, model: SteerableModel) -> list[str]:
    """Put each new vector of `folder` whose name is as the last release left it; returns the names put.

    A disk that refuses them is no reason not to serve: they are put at the next start. Raises `VectorsError` for a
    shipped vector that does not fit.
    """
    marker = data_dir / MARKER
    keep_file_private(marker)
    known = read_marker(marker)
    if known is None:
        aside = Quarantine(data_dir / FOLDER).take(marker)
        _log.warning("%s is damaged and was moved to %s", marker, aside)
        known = dict.fromkeys(store.names(), "")
    try:
        return _put(store, folder, marker, model, known)
    except (OSError, StorageFailed) as error:
        _log.warning("the shipped vectors were not put: %s", error)
        return []


def _put(store: VectorStore, folder: Path, marker: Path, model: SteerableModel, known: dict[str, str]) -> list[str]:
    taken = set(store.names())
    put = []
    for file in sorted(folder.glob("*.safetensors")):
        vector = decode(file.read_bytes(), num_layers=model.num_layers, hidden_size=model.hidden_size)
        if known.get(file.stem) == vector.revision:
            continue
        vector.fit(model.num_layers, model.hidden_size, model.sites)
        try:
            current = store.get(file.stem).revision if file.stem in taken else None
        except StoreCorrupt:  # the user decides what becomes of it
            continue
        if current == known.get(file.stem):  # both None: a free name, never shipped
            store.put(file.stem, vector)
            put.append(file.stem)
        known[file.stem] = vector.revision
        write_file(marker, json.dumps(known, indent=1).encode(), mode=PRIVATE_FILE)
    return put


def read_marker(marker: Path) -> dict[str, str] | None:
    """The revision that was shipped of each name; None if the marker is damaged."""
    try:
        known = json.loads(marker.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        known = None
    if not isinstance(known, dict) or not all(isinstance(revision, str) for revision in known.values()):
        return None
    return known
