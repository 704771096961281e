"""Settings for the whole suite."""

from __future__ import annotations

import gc
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models: a second thread only waits for the first
# all that tests speak to is plain HTTP: reading the world's certificates would take each of their clients 50 ms
os.environ.pop("SSL_CERT_FILE", None)
os.environ["SSL_CERT_DIR"] = os.path.dirname(__file__)

import pytest

# what the tests store is flushed to the disk each time, which a disk takes milliseconds for and memory nothing
MEMORY = "/dev/shm"
if os.path.isdir(MEMORY) and os.statvfs(MEMORY).f_bavail * os.statvfs(MEMORY).f_frsize > 1 << 30:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", MEMORY)

gc.disable()  # until all is imported: nothing of it can be collected


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files whose few tests start servers and train: then two workers end at about the same time."""
    items.sort(key=lambda item: "/cli/" not in item.path.as_posix())


def pytest_collection_finish() -> None:
    """What is imported by now stays, and is a million objects that no collection need look at again."""
    gc.freeze()
    gc.enable()
