"""Where real weights, vectors and data lie when they are at hand: a folder `shared` beside the repository."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"


def shared(relative: str) -> Path:
    """The path of a shared file or folder; the test is skipped, with the reason, where it is absent."""
    path = SHARED / relative
    if not path.exists():
        pytest.skip(f"needs {relative} in a folder 'shared' beside the repository")
    return path
