"""A running server with a tiny real model, shared by the tests of the clients."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from tests.server.cli.running import TINY_STORIES, ServerProcess

HIDDEN_SIZE = 128
CHAT_TEMPLATE = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"


@pytest.fixture(scope="session")
def tiny_model() -> Path:
    """The folder of a tiny real model without a chat template."""
    if not TINY_STORIES.is_dir():
        pytest.skip(f"{TINY_STORIES.name} is not beside the repository")
    return TINY_STORIES


@pytest.fixture(scope="session")
def chat_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A template that joins the messages' contents."""
    file = tmp_path_factory.mktemp("template") / "chat.jinja"
    file.write_text(CHAT_TEMPLATE, encoding="utf-8")
    return file


@pytest.fixture(scope="session")
def server_url(tiny_model: Path, chat_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of the tiny model, with chat; tests name their vectors apart."""
    data_dir = tmp_path_factory.mktemp("data")
    with ServerProcess(data_dir, tiny_model, "--chat-template", chat_template) as server:
        yield server.wait_until_ready()


@pytest.fixture
def vector_file(tmp_path: Path) -> Path:
    """A vector for the tiny model, with one direction at block 0."""
    direction = torch.randn(HIDDEN_SIZE, generator=torch.Generator().manual_seed(0))
    file = tmp_path / "vector.safetensors"
    file.write_bytes(save({"residual.0": direction}))
    return file
