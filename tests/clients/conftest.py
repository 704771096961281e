"""The embedded model behind a real `tiller serve`, shared by every third-party client of this folder.

All tests here bear the mark `clients`; `make test-clients` runs them, in environments that hold the clients.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.cli.running import DEADLINE, ServerProcess

FOLDER = Path(__file__).parent
NODE_PACKAGE = "openai@6.49.0"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what lies in this folder, before marks are selected by."""
    for item in items:
        if FOLDER in item.path.parents:
            item.add_marker(pytest.mark.clients)


@pytest.fixture(scope="session")
def server_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The embedded model `tiller-demo` in float32, on a free port, with its vectors `honest` and `cheerful`."""
    with ServerProcess(tmp_path_factory.mktemp("data"), "--dtype", "float32") as server:
        yield server.wait_until_ready()


@pytest.fixture(scope="session")
def base_url(server_url: str) -> str:
    """What OpenAI's clients call the base URL."""
    return f"{server_url}/v1"


@pytest.fixture(scope="session")
def node_folder(pytestconfig: pytest.Config) -> Path:
    """A folder in which Node finds OpenAI's SDK; installed there once, by npm."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("needs Node and npm")
    assert pytestconfig.cache is not None
    folder = pytestconfig.cache.mkdir(NODE_PACKAGE.replace("@", "-node-"))
    if not (folder / "node_modules" / "openai").is_dir():
        install = [npm, "install", "--no-save", "--no-audit", "--no-fund", "--prefix", str(folder), NODE_PACKAGE]
        if subprocess.run(install, capture_output=True, timeout=DEADLINE, check=False).returncode:
            pytest.skip(f"npm cannot install {NODE_PACKAGE}")
    return folder
