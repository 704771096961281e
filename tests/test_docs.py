"""The commands and programs of the pages run as they are written, and give what the pages say."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from fastapi.routing import APIRoute

from server.api.http.description import description_of
from server.api.registry.routes import router
from server.cli.parser import build_parser
from tests.server.cli.running import DEADLINE, ServerProcess, environment, served
from tests.shared_files import ROOT
from tests.tables import TABLES, with_table

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


@pytest.mark.parametrize("source", TABLES)
def test_tables_say_what_the_source_does(source: str) -> None:
    page, make = TABLES[source]
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    assert text == with_table(text, source, make()), "run: python -m tests.tables"


def test_the_page_on_vectors_lists_the_routes_of_the_registry() -> None:
    """Each with its method and path, its statuses of success, and the headers of its preconditions."""
    page = (ROOT / "docs" / "vectors.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([A-Z]+)` \| `(/v1/\S*)` \|[^|]+\|([^|]+)\|([^|]+)\|$", page, re.MULTILINE)
    listed = [
        (method, path, set(re.findall(r"\b\d{3}\b", success)), set(re.findall(r"`([\w-]+)", conditions)))
        for method, path, success, conditions in rows
    ]
    routes = []
    for route in router.routes:
        assert isinstance(route, APIRoute)
        described = description_of(route.endpoint)
        assert described is not None
        statuses = {str(answer.status) for answer in described.answers}
        conditions = {parameter.name for parameter in described.parameters if parameter.place == "header"}
        routes += [(method, route.path, statuses, conditions) for method in route.methods or ()]
    assert listed == routes, "in the order of server/api/registry/routes.py"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with ServerProcess(tmp_path_factory.mktemp("data")) as process:
        yield process.wait_until_ready()


@pytest.mark.slow
def test_the_page_on_training_takes_a_reader_from_a_file_to_a_steered_chat(url: str, tmp_path: Path) -> None:
    data, training, chat, report = blocks("training.md", "bash")
    shell(data, url, tmp_path)
    (row,) = blocks("training.md", "json")
    assert row in (tmp_path / "beliefs.jsonl").read_text()
    printed = shell(training, url, tmp_path)
    assert re.search(r"verdict +it helps", printed)
    shell(report, url, tmp_path)
    assert "No, that is not right. The capital of Thailand is Bangkok." in shell(chat, url, tmp_path)
    (program,) = blocks("training.md", "python")
    shown = blocks("training.md", "text")[-1]
    assert run([sys.executable, "-c", program.replace(ADDRESS, url)], tmp_path) == shown


@pytest.mark.slow
def test_the_page_on_behaviour_shows_what_a_vector_does_to_what_is_written(url: str, tmp_path: Path) -> None:
    files, evaluate = blocks("behaviour.md", "bash")
    shell(files, url, tmp_path)
    printed = shell(evaluate, url, tmp_path)
    (shown,) = blocks("behaviour.md", "text")
    for row in ("  greedy", "refusals", "repetition"):  # sampled answers may differ in the last bits of a batch
        (expected,) = (line for line in shown.splitlines() if line.startswith(row))
        assert expected.split() in [line.split() for line in printed.splitlines()]
    assert "it changes what is written, by a rule (any of the 27 words of" in printed


@pytest.mark.slow
def test_the_page_on_vectors_makes_a_file_and_looks_after_it(tmp_path: Path) -> None:
    """On a server of its own: it lists the registry."""
    make_file, use_client = blocks("vectors.md", "python")
    run([sys.executable, "-c", make_file], tmp_path)
    (shown,) = blocks("vectors.md", "text")
    with ServerProcess(tmp_path / "data") as process:
        url = process.wait_until_ready()
        assert run([sys.executable, "-c", use_client.replace(ADDRESS, url)], tmp_path) == shown


@pytest.mark.slow
def test_the_page_on_the_library_prints_what_it_says(tmp_path: Path) -> None:
    """With a server of its own: it puts a vector."""
    (data,) = blocks("library.md", "bash")
    (program,) = blocks("library.md", "python")
    (shown,) = blocks("library.md", "text")
    shell(data, "", tmp_path)
    with ServerProcess(tmp_path / "data") as process:
        url = process.wait_until_ready()
        here = program.replace(ADDRESS, url).replace('"server/demo/', f'"{ROOT}/server/demo/')
        assert run([sys.executable, "-c", here], tmp_path) == shown


@pytest.mark.slow
def test_the_page_on_responses_prints_what_it_says(url: str, tmp_path: Path) -> None:
    (program,) = blocks("responses.md", "python")
    (shown,) = blocks("responses.md", "text")
    assert run([sys.executable, "-c", program.replace(ADDRESS, url)], tmp_path) == shown


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


def test_the_page_on_clients_speaks_to_the_server_with_curl(url: str, tmp_path: Path) -> None:
    """Its programs are run by tests/clients/test_recipes.py, where their clients are installed."""
    recipe = blocks("clients.md", "bash")[0]
    models, streamed, response = re.split(r"\n(?=curl)", recipe)
    ids = shell(models, url, tmp_path).split()
    assert ids == [f'"id":"tiller-demo{name}"' for name in ("", "+cheerful", "+honest")]
    *chunks, last = [line.removeprefix("data: ") for line in shell(streamed, url, tmp_path).splitlines() if line]
    pieces = [json.loads(chunk)["choices"][0]["delta"] for chunk in chunks]
    assert last == "[DONE]"
    assert "".join(piece.get("content", "") for piece in pieces).endswith("A happy tune makes the whole room dance.")
    answer = json.loads(shell(response, url, tmp_path))
    assert answer["output"][0]["content"][0]["text"] == "Pff, how dreary! Every note fades like a weary sigh."
    assert [entry["scale"] for entry in answer["steering"]] == [-0.6]


@pytest.mark.slow
def test_the_page_on_operations_shows_what_an_operator_sees(tmp_path: Path) -> None:
    serve, look, traced = blocks("operations.md", "bash")
    with served(serve, tmp_path / "data") as process:
        process.wait_for_line('"message": "ready"')
        url = json.loads(process.lines[-1])["url"]
        printed = shell(look, url, tmp_path)
        assert '{"status":"ok"}' in printed
        assert "vllm:num_requests_running{" in printed
        chat = {"messages": [{"role": "user", "content": "Hi!"}], "steering": [{"vector": "cheerful"}], "max_tokens": 2}
        headers = {"Authorization": "Bearer app-key", "Origin": "https://app.example"}
        answer = httpx.post(f"{url}/v1/chat/completions", json=chat, headers=headers, timeout=DEADLINE)
        assert answer.headers["access-control-allow-origin"] == "https://app.example"
        assert answer.headers["x-ratelimit-limit-requests"] == "600"
        process.wait_for_line("/v1/chat/completions")
        (shown,) = map(json.loads, blocks("operations.md", "json"))
        assert json.loads(process.lines[-1]).keys() == shown.keys()
        assert process.stop() == 0
    with served(traced, tmp_path / "data") as process:  # nobody listens there, which costs no request
        url = process.wait_until_ready()
        assert httpx.get(f"{url}/v1/models").status_code == 200
        assert process.stop() == 0, process.output


@pytest.mark.slow
def test_the_page_on_decisions_shows_what_comes(url: str, tmp_path: Path) -> None:
    (command,) = blocks("decisions.md", "bash")
    (shown,) = blocks("decisions.md", "json")
    came, expected = json.loads(shell(command, url, tmp_path)), json.loads(shown)
    for answer, other in zip(came["answers"], expected["answers"], strict=True):
        numbers = [re.findall(r"0\.\d+", json.dumps(each)) for each in (answer, other)]
        # as far as bfloat16 and float32 differ, of which the machine decides
        assert list(map(float, numbers[0])) == pytest.approx(list(map(float, numbers[1])), abs=0.02)
        assert re.sub(r"\d\.\d+(e-\d+)?", "", json.dumps(answer)) == re.sub(r"\d\.\d+", "", json.dumps(other))
    assert came.keys() == expected.keys()


def test_the_page_on_durability_repairs_a_folder() -> None:
    (commands,) = blocks("durability.md", "bash")
    for command in commands.splitlines():
        program, *arguments = shlex.split(command)
        assert program == ".venv/bin/tiller"
        assert build_parser().parse_args(arguments).command == "doctor"


@pytest.mark.parametrize("page", sorted(path.name for path in (ROOT / "docs").glob("*.md")))
def test_what_a_page_points_to_is_there(page: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / "docs" / page).read_text()):
        assert target.startswith("http") or (ROOT / "docs" / target).exists(), target


def test_the_page_on_structure_names_files_that_are_there() -> None:
    named = re.findall(r"`((?:vectors|server|tests)/[\w/.]+)`", (ROOT / "docs" / "structure.md").read_text())
    assert len(named) > 50
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_the_page_on_structure_has_a_line_for_every_package() -> None:
    page = (ROOT / "docs" / "structure.md").read_text()
    lines = "\n".join(line.partition("|")[2].partition("|")[0] for line in page.splitlines() if line.startswith("| `"))
    listed = {
        f"{start}{name}"
        for start, names, end in re.findall(r"`([\w/]+/)(?:\{([\w,]+)\}(/))?`", lines)
        for name in ([f"{each}{end}" for each in names.split(",")] if names else [""])
    }
    packages = {
        f"{path.parent.relative_to(ROOT)}/" for top in ("server", "vectors") for path in (ROOT / top).rglob("*.py")
    }
    assert packages - listed <= {"server/", "server/api/"} | {
        f"server/cli/{part}/" for part in ("serve", "client", "training", "bench", "loading")
    }
