"""What lies on the disk: file names that differ on every disk, and one owner of the files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vectors.errors import StoreLocked
from vectors.store import VectorStore
from vectors.vector import SteeringVector

A, B = (SteeringVector({0: torch.ones(4)}, default_scale=scale) for scale in (1.0, 2.0))


def test_names_that_differ_in_case_have_files_that_differ_without_it(tmp_path: Path) -> None:
    names = ["Vector", "vector", "VECTOR", "vEctor"]
    with VectorStore(tmp_path) as store:
        for name in names:
            store.put(name, A.with_defaults(description=name))
        assert len({path.name.lower() for path in (tmp_path / "names").iterdir()}) == len(names)
        held = {name: store.get(name).revision for name in names}
    with VectorStore(tmp_path) as again:
        assert {name: again.get(name).revision for name in again.names()} == held


def test_a_closed_store_changes_nothing(tmp_path: Path) -> None:
    store = VectorStore(tmp_path)
    store.put("v", A)
    store.close()
    with VectorStore(tmp_path) as owner:
        with pytest.raises(StoreLocked):
            store.put("v", B)
        with pytest.raises(StoreLocked):
            store.remove("v")
        assert owner.get("v").revision == A.revision
