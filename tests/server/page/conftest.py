"""A real browser: the system's Chromium, driven by Playwright. Where either is missing, the tests are skipped.

`TILLER_TEST_PICTURES` names a folder for the pictures that the tests take; without it they go where pytest keeps its
temporary files.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

from tests.server.page.browsing import Tab, chromium, tab


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One browser for a module's tests."""
    path = chromium()
    if path is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    arguments = ["--disable-gpu", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=path, args=arguments)
        yield found
        found.close()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pictures are kept."""
    folder = Path(os.environ.get("TILLER_TEST_PICTURES") or tmp_path_factory.mktemp("pictures"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def opened(browser: Browser, server_url: str) -> Iterator[Tab]:
    """A fresh tab with the page; at the end it must have said nothing wrong and asked no other server."""
    with tab(browser, server_url) as found:
        yield found
