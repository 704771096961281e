"""What tests of several packages of the server need."""

from __future__ import annotations

import pytest

from server.kernels.library import Kernels, load_kernels


@pytest.fixture(scope="session")
def kernels() -> Kernels:
    """The compiled kernels."""
    found = load_kernels()
    if found is None:
        pytest.skip("there is no C compiler")
    return found
