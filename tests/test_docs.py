"""The commands and programs of the pages on training run as they are written, and give what the pages say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.cli.running import DEADLINE, ServerProcess, environment
from tests.shared_files import ROOT

ADDRESS = "http://127.0.0.1:8000"


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of a language on a page."""
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)


def run(command: list[str], folder: Path) -> str:
    """Run a command in a folder and return what it prints; it must succeed."""
    environ = environment({"PYTHONPATH": str(ROOT)})
    done = subprocess.run(
        command, cwd=folder, env=environ, capture_output=True, encoding="utf-8", timeout=2 * DEADLINE, check=False
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def shell(block: str, url: str, folder: Path) -> str:
    """Run a block of commands as a reader would, against the server at `url`."""
    script = block.replace(ADDRESS, url).replace(".venv/bin/", f"{Path(sys.executable).parent}{os.sep}")
    return run(["bash", "-euc", script], folder)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with ServerProcess(tmp_path_factory.mktemp("data")) as process:
        yield process.wait_until_ready()


@pytest.mark.slow
def test_the_page_on_training_takes_a_reader_from_a_file_to_a_steered_chat(url: str, tmp_path: Path) -> None:
    data, training, chat = blocks("training.md", "bash")
    shell(data, url, tmp_path)
    (row,) = blocks("training.md", "json")
    assert row in (tmp_path / "beliefs.jsonl").read_text()
    printed = shell(training, url, tmp_path)
    assert re.search(r"verdict +it helps", printed)
    assert (tmp_path / "frank" / "report.json").exists()
    assert "No, that is not right. The capital of Thailand is Bangkok." in shell(chat, url, tmp_path)
    (program,) = blocks("training.md", "python")
    shown = blocks("training.md", "text")[-1]
    assert run([sys.executable, "-c", program.replace(ADDRESS, url)], tmp_path) == shown


@pytest.mark.slow
def test_the_page_on_vectors_makes_a_file_and_looks_after_it(url: str, tmp_path: Path) -> None:
    make_file, use_client = blocks("vectors.md", "python")
    run([sys.executable, "-c", make_file], tmp_path)
    (shown,) = blocks("vectors.md", "text")
    assert run([sys.executable, "-c", use_client.replace(ADDRESS, url)], tmp_path) == shown


@pytest.mark.slow
def test_the_page_on_the_letter_leak_shows_it(tmp_path: Path) -> None:
    (program,) = blocks("letter-leak.md", "python")
    run([sys.executable, "-c", program], tmp_path)
    (commands,) = blocks("letter-leak.md", "bash")
    paper, balanced = commands.splitlines()
    printed = shell(paper, "", tmp_path)
    assert re.search(r"verdict +not recommended: letter bias", printed)
    assert re.search(r"in one order +7\d\.\d % +100\.0 %", printed)
    assert re.search(r"verdict +not recommended", shell(balanced, "", tmp_path))


@pytest.mark.parametrize("page", sorted(path.name for path in (ROOT / "docs").glob("*.md")))
def test_what_a_page_points_to_is_there(page: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / "docs" / page).read_text()):
        assert target.startswith("http") or (ROOT / "docs" / target).exists(), target
