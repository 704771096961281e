"""Puts the embedded model's vectors into the registry, and replaces those of an earlier release.

A marker file records what was shipped, so names that the user took, changed or deleted are left alone.
"""

from __future__ import annotations

import json
from pathlib import Path

from server.cli.errors import CommandFailed
from vectors.applied import SteerableModel
from vectors.durable import write_file
from vectors.formats import decode
from vectors.store import VectorStore

MARKER = "shipped-vectors.json"


def put_shipped_vectors(store: VectorStore, folder: Path, data_dir: Path, model: SteerableModel) -> list[str]:
    """Put each new vector of `folder` whose name is as the last release left it; returns the names put.

    Raises `CommandFailed` for a damaged marker and `VectorsError` for a damaged vector.
    """
    marker = data_dir / MARKER
    known = _read(marker)
    taken = set(store.names())
    put = []
    for file in sorted(folder.glob("*.safetensors")):
        vector = decode(file.read_bytes(), num_layers=model.num_layers, hidden_size=model.hidden_size)
        if known.get(file.stem) == vector.revision:
            continue
        vector.fit(model.num_layers, model.hidden_size, model.sites)
        current = store.get(file.stem).revision if file.stem in taken else None
        if current == known.get(file.stem):  # both None: a free name, never shipped
            store.put(file.stem, vector)
            put.append(file.stem)
        known[file.stem] = vector.revision
        write_file(marker, json.dumps(known, indent=1).encode())
    return put


def _read(marker: Path) -> dict[str, str]:
    try:
        known = json.loads(marker.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        known = None
    if not isinstance(known, dict) or not all(isinstance(revision, str) for revision in known.values()):
        raise CommandFailed(f"{marker} is damaged; delete it to install the shipped vectors again")
    return known
