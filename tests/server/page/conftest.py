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
from transformers import AutoTokenizer

from server.demo import MODEL_DIR, MODEL_NAME, VECTORS_DIR
from server.engine.model import load_model
from server.training.steering_trainer import SteeringTrainer
from tests.server.api.serving import Server, serving
from tests.server.page.browsing import Tab, chromium, tab
from vectors.formats import decode


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One browser for a file. While there is one, an event loop runs in this thread, which other tests would meet."""
    path = chromium()
    if path is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    arguments = ["--disable-gpu", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=path, args=arguments)
        yield found
        found.close()


@pytest.fixture(scope="package")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pictures are kept."""
    folder = Path(os.environ.get("TILLER_TEST_PICTURES") or tmp_path_factory.mktemp("pictures"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="package")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The embedded model, and training on it."""
    model = load_model(MODEL_DIR, device="cpu", dtype="float32", model_id=MODEL_NAME)
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    folder = tmp_path_factory.mktemp("data")
    with serving(folder, model=model, tokenizer=tokenizer, trainer=SteeringTrainer) as running:
        yield running


@pytest.fixture
def server(demo: Server) -> Server:
    """The server of the embedded model, with its vectors and no others."""
    shipped = {
        file.stem: decode(file.read_bytes(), num_layers=6, hidden_size=192)
        for file in VECTORS_DIR.glob("*.safetensors")
    }
    revisions = {name: record.revision for name, record in demo.store.current_records().items()}
    if revisions != {name: vector.revision for name, vector in shipped.items()}:
        for name in demo.store.names():
            demo.store.remove(name)
        for name, vector in shipped.items():
            demo.store.put(name, vector)
    return demo


@pytest.fixture
def server_url(server: Server) -> str:
    """Where the page is."""
    return server.url


@pytest.fixture
def opened(browser: Browser, server_url: str) -> Iterator[Tab]:
    """A fresh tab with the page; at the end it must have said nothing wrong and asked no other server."""
    with tab(browser, server_url) as found:
        yield found
