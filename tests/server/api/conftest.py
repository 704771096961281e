"""One server for all tests of a module; each test that changes the registry uses names of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.server.api.serving import Server, serving, vector


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """An open server with the vectors `calm` (block 1) and `bold` (all blocks)."""
    with serving(tmp_path_factory.mktemp("data"), max_upload_mib=0.25) as running:
        running.store.put("calm", vector(1))
        running.store.put("bold", vector(2, 0, 1, 2))
        yield running
