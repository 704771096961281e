"""The recipes of docs/clients.md run as they are written, where their client is installed, and print what it says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.server.cli.running import DEADLINE, ServerProcess, environment
from tests.shared_files import ROOT

ADDRESS = "http://127.0.0.1:8000"
PAGE = (ROOT / "docs" / "clients.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE))

PROGRAMS = {
    "OpenAI SDK for Python": "openai",
    "LangChain": "langchain_openai",
    "LlamaIndex": "llama_index.llms.openai_like",
    "LiteLLM": "litellm",
    "Instructor": "instructor",
    "Pydantic AI": "pydantic_ai",
}
"""Each section with a program in Python, and the module that it needs."""
ELSEWHERE = {"curl", "OpenAI SDK for Node", "lm-evaluation-harness", "Open WebUI"}
"""Sections with a test of their own; that of curl is beside the other pages', as it needs no client."""


def block(section: str, language: str) -> str:
    """The one block of a language in a section."""
    found: list[str] = re.findall(rf"^```{language}\n(.*?)^```", SECTIONS[section], re.DOTALL | re.MULTILINE)
    (only,) = found
    return only


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The server that `make serve` starts, but for its address."""
    with ServerProcess(tmp_path_factory.mktemp("data")) as process:
        yield process.wait_until_ready()


def run(command: list[str], folder: Path) -> str:
    """What a command prints; it must succeed, and no client asks the internet for anything."""
    offline = {"PYTHONPATH": str(ROOT), "LITELLM_LOCAL_MODEL_COST_MAP": "True", "HF_DATASETS_CACHE": str(folder)}
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment(offline),
        capture_output=True,
        encoding="utf-8",
        timeout=2 * DEADLINE,
        check=False,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def test_every_recipe_is_run() -> None:
    assert set(SECTIONS) == PROGRAMS.keys() | ELSEWHERE


@pytest.mark.parametrize("section", PROGRAMS)
def test_programs(url: str, section: str, tmp_path: Path) -> None:
    pytest.importorskip(PROGRAMS[section], exc_type=ImportError)
    program = block(section, "python").replace(ADDRESS, url)
    assert run([sys.executable, "-c", program], tmp_path) == block(section, "text")


def test_node(url: str, node_folder: Path) -> None:
    script = node_folder / "recipe.mjs"
    script.write_text(block("OpenAI SDK for Node", "js").replace(ADDRESS, url), encoding="utf-8")
    assert run(["node", str(script)], node_folder) == block("OpenAI SDK for Node", "text")


def test_the_harness(url: str, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", exc_type=ImportError)
    script = block("lm-evaluation-harness", "bash").replace(ADDRESS, url)
    script = script.replace(".venv/bin/", f"{Path(sys.executable).parent}{os.sep}")
    script = script.replace("server/demo/model", str(ROOT / "server" / "demo" / "model"))
    printed = run(["bash", "-euc", script], tmp_path)
    shown = block("lm-evaluation-harness", "text").splitlines()
    assert shown
    assert [line for line in printed.splitlines() if "|acc " in line] == shown


def test_open_webui_is_told_where_the_server_is() -> None:
    """As text: it takes a daemon of Docker to see more."""
    ours, theirs = (
        yaml.safe_load((ROOT / "docker" / name).read_text(encoding="utf-8"))
        for name in ("compose.yaml", "open-webui.yaml")
    )
    webui = theirs["services"]["open-webui"]
    assert webui["depends_on"].keys() <= ours["services"].keys()
    (port,) = (ports.split(":")[-1] for ports in ours["services"]["tiller"]["ports"])
    assert webui["environment"]["OPENAI_API_BASE_URL"] == f"http://tiller:{port}/v1"
    (variable,) = re.findall(r"\$\{(\w+):\?", webui["environment"]["OPENAI_API_KEY"])
    assert variable in (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert variable in block("Open WebUI", "bash")
    assert {volume.split(":")[0] for volume in webui["volumes"]} == theirs["volumes"].keys()
    for name in re.findall(r"docker/[\w-]+\.yaml", SECTIONS["Open WebUI"]):
        assert (ROOT / name).is_file()
