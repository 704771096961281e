"""vLLM as the engine. `make test-vllm` runs what lies here, and the contract's tests, in an environment of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

FOLDER = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what lies in this folder, before marks are selected by."""
    for item in items:
        if FOLDER in item.path.parents:
            for mark in (pytest.mark.vllm, pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(1200)):
                item.add_marker(mark)
