"""The house's arrows: imports go down only, packages stay free of what they must not know. Read from the source."""

from __future__ import annotations

import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

FLOORS: list[tuple[str, ...]] = [
    ("vectors.errors", "vectors.durable", "vectors.names", "vectors.client_errors", "server", "vectors"),
    ("vectors.vector", "vectors.client_answers"),
    ("vectors.sites", "vectors.formats", "vectors.method", "vectors.progress", "vectors.statistics", "vectors.plots"),
    ("vectors.store", "vectors.datasets", "vectors.client_calls"),
    ("vectors.prompts", "vectors.probe", "vectors.client"),
    ("vectors.contrast",),
    ("vectors.examiner",),
    ("vectors.search", "vectors.outcome"),
    ("vectors.report",),
    ("vectors.train",),
    ("vectors.evaluate",),
    ("vectors.task",),
    ("vectors.study",),
    ("vectors.study_data", "vectors.study_tables"),
    ("vectors.study_run",),
    ("server.errors", "server.config", "server.keys", "server.durable_database"),
    ("server.engine",),
    ("server.detokenizer",),
    ("server.answers",),
    ("server.text",),
    ("server.probe", "server.multiple_choice"),
    ("server.jobs", "server.response_store"),
    ("server.api", "server.demo", "server.training"),
    ("server.app", "server.bench"),
    ("server.cli",),
]
"""From the ground up; a module belongs to the longest name that it begins with."""

COMMANDS = ("server.cli", "server.demo.", "server.bench.")
"""What is run by name: `tiller`, the steps that make the embedded model, and measurements."""

MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in ("vectors", "server")
    for path in sorted((ROOT / package).rglob("*.py"))
}


def floor_of(module: str) -> tuple[int, str]:
    """The floor of a module and the name in `FLOORS` that puts it there."""
    best = max(
        (
            (len(name), floor, name)
            for floor, names in enumerate(FLOORS)
            for name in names
            if module == name or (module.startswith(f"{name}.") and name not in ("server", "vectors"))
        ),
        default=None,
    )
    assert best is not None, f"{module} is on no floor: add it to FLOORS"
    return best[1], best[2]


def imports_of(path: Path) -> set[str]:
    """Every module that the file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write imports in full"
            assert node.module is not None
            found |= {
                name if (name := f"{node.module}.{alias.name}") in MODULES else node.module for alias in node.names
            }
    return found


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down(module: str) -> None:
    floor, home = floor_of(module)
    for imported in imports_of(MODULES[module]) & MODULES.keys():
        other_floor, other_home = floor_of(imported)
        assert other_floor < floor or other_home == home or other_floor == 0, (
            f"{module} imports {imported}, not below it"
        )


def test_no_cycles() -> None:
    graph = {module: (imports_of(path) & MODULES.keys()) - {module} for module, path in MODULES.items()}
    graphlib.TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("module", [module for module in MODULES if module.startswith(("vectors", "server.engine"))])
def test_vectors_and_engine_know_no_http(module: str) -> None:
    roots = {name.partition(".")[0] for name in imports_of(MODULES[module])}
    allowed = {"httpx"} if module == "vectors.client" else set()
    assert not roots & {"fastapi", "starlette", "uvicorn", "httpx"} - allowed


@pytest.mark.parametrize("module", [module for module in MODULES if not module.startswith(COMMANDS)])
def test_only_commands_read_argv_and_environment(module: str) -> None:
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Attribute):
            assert node.attr not in ("argv", "environ", "getenv"), f"line {node.lineno}"


@pytest.mark.parametrize("module", MODULES)
def test_every_module_says_what_it_is_for(module: str) -> None:
    assert ast.get_docstring(ast.parse(MODULES[module].read_text()))


def test_nothing_is_unpickled() -> None:
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                assert {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}["weights_only"] == "True"
        assert "pickle" not in imports_of(path), module
