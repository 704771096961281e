"""How tiller is installed: every version pinned, and the recipe of the containers."""

from __future__ import annotations

import importlib.metadata
import re
import shlex
import subprocess
import sys
import tomllib
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from server import __version__
from server.config import Settings
from tests.server.cli.running import ROOT, environment

DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", "")
COMPOSE = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text(encoding="utf-8"))
GPU_LIBRARIES = ("nvidia-", "cuda-", "triton")
"""What the CUDA wheel of PyTorch brings, in versions of its own choice."""
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
SERVICES = [pytest.param(service, id=name) for name, service in COMPOSE["services"].items()]


def needed(name: str, extras: frozenset[str] = frozenset(), *, deeply: bool = True) -> set[str]:
    """Every distribution that `name` with its extras needs here, itself too; or only what it names itself."""
    found: set[str] = set()
    waiting = [(name, extras)]
    seen = set()
    while waiting:
        name, extras = waiting.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        found.add(canonicalize_name(name))
        if not deeply and name != "tiller":
            continue
        for line in importlib.metadata.requires(name) or ():
            requirement = Requirement(line)
            if requirement.name.startswith(GPU_LIBRARIES):
                continue
            if requirement.marker is None or any(
                requirement.marker.evaluate({"extra": extra}) for extra in ("", *extras)
            ):
                waiting.append((requirement.name, frozenset(requirement.extras)))
    return found


def test_every_dependency_is_pinned() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {canonicalize_name(line.split("==")[0]) for line in lines if "==" in line}
    assert needed("tiller", frozenset(["dev"])) - {"tiller"} <= pinned


def test_a_client_needs_no_tensor_library() -> None:
    heavy = {"torch", "transformers", "numpy", "safetensors", "fastapi", "uvicorn"}
    assert not needed("tiller") & heavy
    assert not needed("tiller", frozenset(["client"])) & heavy
    assert {"torch", "transformers"} <= needed("tiller", frozenset(["steer"]))
    assert heavy <= needed("tiller", frozenset(["server"]))
    assert {"torch", "scipy", "matplotlib"} <= needed("tiller", frozenset(["train"]))


def test_pytorch_is_a_range_for_others_and_pinned_for_us() -> None:
    (torch,) = {Requirement(line) for line in PROJECT["optional-dependencies"]["steer"] if line.startswith("torch")}
    (pin,) = re.findall(r"^torch==(.*)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.M)
    assert "==" not in {part.operator for part in torch.specifier}
    assert torch.specifier.contains(pin)


def test_the_version_is_written_once() -> None:
    assert "version" not in PROJECT
    assert importlib.metadata.version("tiller") == __version__


def words_of(instruction: str) -> list[str]:
    (line,) = [line for line in DOCKERFILE.splitlines() if instruction in line]
    return shlex.split(line)


def test_the_image_installs_what_the_package_asks_for() -> None:
    words = words_of("tomllib")
    code = words[words.index("-c") + 1]
    printed = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, encoding="utf-8", check=True
    ).stdout
    asked = needed("tiller", frozenset(["adapter", "otel", "server", "train"]), deeply=False)
    assert {canonicalize_name(Requirement(line).name) for line in printed.splitlines()} == asked - {"tiller"}
    extras = PROJECT["optional-dependencies"]
    assert set(printed.splitlines()) <= {line for lines in extras.values() for line in lines}


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_a_changed_source_installs_no_dependency_again(target: str) -> None:
    base, stage = (
        re.search(rf"^FROM .* AS {name}$(.*?)(?=^FROM|\Z)", DOCKERFILE, re.M | re.S) for name in ("base", target)
    )
    assert base is not None
    assert stage is not None
    before, installs, after = stage[1].partition("-r requirements.txt")
    assert installs
    for folder in ("server", "vectors"):
        assert f"COPY {folder} " in after
        assert f"COPY {folder} " not in base[1] + before


def test_the_cpu_image_takes_the_cpu_wheels() -> None:
    assert words_of("ARG TORCH_INDEX") == ["ARG", "TORCH_INDEX=https://download.pytorch.org/whl/cpu"]
    assert "TORCH_INDEX" in COMPOSE["services"]["tiller"]["build"]["args"]


def test_the_health_check_asks_the_port_of_the_server(server_url: str) -> None:
    words = words_of("urllib.request")
    code = words[words.index("-c") + 1]

    def exit_code(port: str) -> int:
        environ = environment({"TILLER_PORT": port})
        return subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, check=False).returncode

    assert exit_code(server_url.rpartition(":")[2]) == 0
    assert exit_code("1") == 1


@pytest.mark.parametrize("service", SERVICES)
def test_a_container_has_the_time_to_finish_its_requests(service: dict[str, Any]) -> None:
    assert int(service["stop_grace_period"].removesuffix("s")) > Settings().drain_timeout
    assert service["init"] is True


@pytest.mark.parametrize("service", SERVICES)
def test_up_and_down_see_the_same_key(service: dict[str, Any]) -> None:
    """It is in a file that git does not take, and no command depends on what the shell exports."""
    assert service["env_file"] == ".env"
    assert "$" not in str(service)
    ignored = (ROOT / "docker" / ".gitignore").read_text(encoding="utf-8").splitlines()
    assert ".env" in ignored
