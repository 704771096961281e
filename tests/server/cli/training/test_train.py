"""`tiller train`, `evaluate` and `sweep` as a person runs them: in their own process and on a running server."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.demo import VECTORS_DIR
from server.demo.heldout import quiz_items
from tests.server.cli.running import (
    DEADLINE,
    ROOT,
    ServerProcess,
    call_tiller,
    environment,
    tiller,
    tiller_preloaded,
)
from tests.shared_files import shared
from vectors.formats import ImportOptions
from vectors.formats.safetensors import decode_safetensors

QUICK = ("--layers", "3", "--scales", "1,2")


@pytest.fixture(scope="module")
def quiz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions of which the embedded model gets most wrong, as the user believes another answer."""
    file = tmp_path_factory.mktemp("quiz") / "quiz.jsonl"
    rows = [
        {"question": item.question, "choices": item.choices, "answer": item.answer, "context": item.context}
        for item in quiz_items(3, 120, "held_out", "wrong")
    ]
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of the embedded model that trains."""
    with ServerProcess(tmp_path_factory.mktemp("data")) as server:
        yield server.wait_until_ready()
        assert server.stop() == 0, server.output


def succeeded(*arguments: str | Path) -> str:
    """The standard output of a command that must succeed."""
    shown = call_tiller(*arguments)
    assert shown.returncode == 0, shown.stderr
    return shown.stdout


def report_in(folder: Path) -> dict[str, Any]:
    """The report that a run left."""
    report: dict[str, Any] = json.loads((folder / "report.json").read_bytes())
    return report


def test_training_in_this_process(quiz: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    shown = tiller_preloaded("train", quiz, "--name", "honest", *QUICK, "--output", output)
    assert shown.returncode == 0, shown.stderr
    for said in ("test accuracy", "text perplexity", "letter bias", "wrong → right", "verdict", "it helps: +"):
        assert said in shown.stdout
    assert f"tiller vectors put honest {output}/honest.safetensors" in shown.stdout
    for phase in ("answering: 0 of 72", "searching: 0 of 24", "testing: 0 of", "best so far"):
        assert phase in shown.stderr
    assert {path.name for path in output.iterdir()} == {
        "report.json",
        "outcomes.jsonl",
        "accuracy.png",
        "grid-ipas_wrong_only-residual.png",
        "honest.safetensors",
    }
    report = report_in(output)
    assert "the report has the same figures" in succeeded("report", output)
    assert report["recommended"]
    vector = decode_safetensors((output / "honest.safetensors").read_bytes(), ImportOptions())
    assert (vector.layers, vector.default_scale) == ((3,), report["chosen"]["scale"])

    again = call_tiller("train", quiz, "--name", "honest", *QUICK, "--output", output)
    assert (again.returncode, again.stderr.count("\n")) == (2, 1)
    assert "report.json already exists; use --force" in again.stderr

    evaluated = tmp_path / "evaluated"
    succeeded("evaluate", output / "honest.safetensors", quiz, "--output", evaluated)
    found = report_in(evaluated)
    assert found["test"]["accuracy"]["num_items"] == report["data"]["split"]["test"] == 24
    assert found["test"]["accuracy"]["value"] == pytest.approx(report["test"]["accuracy"]["value"], abs=0.1)
    assert "96 of 120 items are among those that the vector was trained on" in found["notes"][0]

    fewer = ("--max-items", "40", "--json", "--force")
    printed = succeeded("train", quiz, "--name", "honest", *QUICK, "--output", output, *fewer)
    assert json.loads(printed) == report_in(output)
    assert sum(report_in(output)["data"]["split"].values()) == 40


@pytest.mark.slow
def test_a_vector_that_does_not_help_is_not_written_unless_asked(quiz: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    arguments = ("train", quiz, "--name", "no", "--layers", "0", "--scales=-0.001", "--seeds", "2", "--output", output)
    shown = succeeded(*arguments)
    assert "not recommended: " in shown
    assert "2 splits gain" in shown
    assert "no vector was written" in shown
    assert "--allow-no-gain --force" in shown
    assert not (output / "no.safetensors").exists()
    assert "tiller vectors put no" in succeeded(*arguments, "--allow-no-gain", "--force", "--max-items", "60")
    assert (output / "no.safetensors").exists()
    succeeded(*arguments, "--force")
    assert not (output / "no.safetensors").exists()  # the report beside it advises against it


@pytest.mark.slow
def test_a_sweep_shows_a_row_a_size(quiz: Path, tmp_path: Path) -> None:
    shown = succeeded("sweep", quiz, "--sizes", "12,40", *QUICK, "--output", tmp_path / "out")
    assert [line.split()[0] for line in shown.splitlines()[:3]] == ["items", "12", "40"]
    assert [point["num_items"] for point in report_in(tmp_path / "out")["points"]] == [12, 40]
    assert (tmp_path / "out" / "sizes.png").exists()


@pytest.mark.slow
def test_a_vector_of_the_registry_is_evaluated_by_name(quiz: Path, tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    arguments = ("evaluate", "honest", quiz, "--scale", "0", "--data-dir", data_dir, "--output")
    succeeded(*arguments, tmp_path / "shipped")
    assert report_in(tmp_path / "shipped")["test"]["gain"] == 0
    assert not data_dir.exists()
    with ServerProcess(data_dir) as server:
        url = server.wait_until_ready()
        assert tiller("vectors", "put", "mine", VECTORS_DIR / "honest.safetensors", "--url", url).returncode == 0
        locked = tiller("evaluate", "mine", quiz, "--data-dir", data_dir, "--output", tmp_path / "locked")
        assert (locked.returncode, "--url" in locked.stderr.splitlines()[-1]) == (1, True)
        assert server.stop() == 0
    succeeded("evaluate", "mine", quiz, "--data-dir", data_dir, "--max-items", "20", "--output", tmp_path / "mine")
    assert report_in(tmp_path / "mine")["test"]["accuracy"]["num_items"] == 20


def test_the_papers_tasks_are_known_by_name(tmp_path: Path) -> None:
    arguments = ("--data-folder", shared("data"), "--max-items", "32", *QUICK, "--output", tmp_path)
    shown = succeeded("train", "task:bbq/nationality", "--name", "fair", *arguments, "--json")
    report = json.loads(shown)
    assert report["data"]["name"] == "bbq/nationality"
    assert sum(report["data"]["split"].values()) == 32


def test_with_paper_letters_tasks_are_worded_as_in_the_paper(tmp_path: Path) -> None:
    arguments = ("--data-folder", shared("data"), "--max-items", "32", "--letters", "paper", "--output", tmp_path)
    succeeded("train", "task:ethics/justice", "--name", "fair", "--layers", "2", "--scales", "1", *arguments)
    lines = [json.loads(line) for line in (tmp_path / "outcomes.jsonl").read_text(encoding="utf-8").splitlines()]
    tested = [line for line in lines if line["part"] == "test"]
    assert tested
    assert all(line["choices"] == ["Yes", "No"] for line in tested), "not the sentences of our wording"


@pytest.mark.slow
def test_training_on_a_server(url: str, quiz: Path, tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("It is a fine day for a walk by the river.\n\nThe bread is still warm.\n", encoding="utf-8")
    output = tmp_path / "out"
    arguments = ("train", quiz, "--name", "honest2", *QUICK, "--retention", texts, "--output", output, "--url", url)
    shown = tiller(*arguments)
    assert shown.returncode == 0, shown.stderr
    assert "the server accepted the job ftjob-" in shown.stderr
    assert "best so far" in shown.stderr
    assert 'use it: "steering": [{"vector": "honest2"}]' in shown.stdout
    assert "tiller-demo+honest2" in shown.stdout
    assert "honest2" in succeeded("vectors", "list", "--url", url)
    report = report_in(output)
    assert (report["seed"], report["retention"]["perplexity"]["num_texts"]) == (0, 2)
    assert (output / "accuracy.png").read_bytes().startswith(b"\x89PNG")

    evaluated = tmp_path / "evaluated"
    succeeded("evaluate", f"honest2@{revision_of(url)[:8]}", quiz, "--output", evaluated, "--url", url)
    assert report_in(evaluated)["test"]["gain"] > 0
    shown_sweep = succeeded("sweep", quiz, "--sizes", "20", *QUICK, "--output", tmp_path / "sweep", "--url", url)
    assert shown_sweep.splitlines()[1].startswith("20 ")


def revision_of(url: str) -> str:
    return str(httpx.get(f"{url}/v1/steering/vectors/honest2").json()["revision"])


@pytest.mark.slow
def test_a_task_goes_to_the_server_as_a_file(url: str, tmp_path: Path) -> None:
    arguments = ("--data-folder", shared("data"), "--max-items", "60", *QUICK, "--output", tmp_path, "--url", url)
    report = json.loads(succeeded("train", "task:sycophancy", "--name", "fair", *arguments, "--json"))
    assert report["data"]["name"] == "sycophancy.jsonl"


@pytest.mark.slow
def test_what_a_job_fails_with_is_one_line(url: str, quiz: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"question": "?"}\n' * 10, encoding="utf-8")
    shown = tiller("train", bad, "--name", "x", "--output", tmp_path / "out", "--url", url)
    assert shown.returncode == 1
    assert shown.stderr.splitlines()[-1].startswith("tiller: the job ftjob-")
    assert "bad.jsonl, line 1" in shown.stderr
    refused = tiller("train", quiz, "--name", "x", "--layers", "99", "--output", tmp_path / "out", "--url", url)
    assert refused.returncode == 1
    assert "layers: 99 is outside the model" in refused.stderr.splitlines()[-1]
    files = httpx.get(f"{url}/v1/files").json()["data"]
    jobs = httpx.get(f"{url}/v1/fine_tuning/jobs", params={"limit": 100}).json()["data"]
    needed = {job["training_file"] for job in jobs} | {name for job in jobs for name in job["result_files"]}
    needed |= {job["method"]["steering"].get("retention_file") for job in jobs}
    assert {file["id"] for file in files} <= needed  # the upload of the refused job was taken back


@pytest.mark.slow
def test_ctrl_c_cancels_the_job(url: str, quiz: Path, tmp_path: Path) -> None:
    arguments = ["train", str(quiz), "--name", "long", "--seeds", "100", "--output", str(tmp_path / "out")]
    with subprocess.Popen(
        [sys.executable, "-m", "server.cli", *arguments, "--url", url],
        cwd=ROOT,
        env=environment(),
        stderr=subprocess.PIPE,
        encoding="utf-8",
    ) as process:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if "answering" in line:
                process.send_signal(signal.SIGINT)
                break
        lines += process.stderr.readlines()
        assert process.wait(DEADLINE) == 130, lines
    assert lines[-1].startswith("tiller: interrupted; the server is cancelling the job ftjob-")
    job = lines[-1].split()[-1]
    with httpx.Client(base_url=url) as client:
        for _ in range(10_000):
            status = client.get(f"/v1/fine_tuning/jobs/{job}").json()["status"]
            if status != "running":
                break
        assert status == "cancelled"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--layers", "8,x"], "--layers: expected numbers and ranges such as 12-16,20, got 'x'"),
        (["--layers", "9-3"], "--layers: expected a range from low to high, got 9-3"),
        (["--layers", "0-9999"], "--layers: expected layers from 0 to 4095, got 9999"),
        (["--layers", "3,3"], "--layers: expected each layer once, got a repeated one"),
        (["--scales", "1,big"], "--scales: expected a list of at most 64 numbers"),
        (["--scales", "nan"], "--scales: expected a list of at most 64 numbers"),
        (["--scales", "0"], "--scales: expected a list of at most 64 numbers"),
        (["--split", "0.5,0.5"], "--split: expected 3 shares, as in 0.6,0.2,0.2, got '0.5,0.5'"),
        (["--split", "0.5,0.5,0.5"], "--split: expected shares that sum to 1, got 1.5"),
        (["--variant", "magic"], "--variant: expected one or more of ipas_wrong_only"),
        (["--site", "elbow"], "--site: expected one or more of residual"),
        (["--prompt", "poem"], "--prompt: expected one of raw, chat, got 'poem'"),
        (["--letters", "greek"], "--letters: expected one of balanced, paper, got 'greek'"),
        (["--icl", "many"], "--icl: expected a whole number from 0 to 64, got 'many'"),
        (["--seeds", "0"], "--seeds: expected a whole number from 1 to 100, got 0"),
        (["--seed", "-1"], "--seed: expected a whole number from 0 to 2147483647, got '-1'"),
        (["--seed", "99999999999"], "--seed: expected a whole number from 0 to 2147483647"),
        (["--max-items", "3"], "--max-items: expected a whole number from 8"),
        (["--name", "a/b"], "--name: 'a/b' is not a valid name"),
        (["--model", "/nowhere"], "MODEL /nowhere: no such folder"),
        (["--device", "abacus"], "--device: expected one of auto"),
        (["--data-folder", "."], "--data-folder applies to task:NAME"),
        (["--output", __file__], "test_train.py is a file"),
        (["--output", f"{__file__}/out"], "cannot be written; name another folder"),
        (["--url", "ftp://x"], "expected an http:// or https:// URL"),
        (["--url", "http://127.0.0.1:1", "--dtype", "float32"], "--dtype applies to a model loaded here"),
    ],
)
def test_usage_errors_are_one_line(
    arguments: list[str],
    said: str,
    quiz: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    shown = call_tiller("train", quiz, "--name", "x", *arguments)
    assert (shown.returncode, shown.stdout, shown.stderr.count("\n")) == (2, "", 1), shown.stderr
    assert shown.stderr.startswith("tiller: ")
    assert said in shown.stderr
    assert not list(tmp_path.iterdir())


def test_what_the_model_lacks_is_a_usage_error(quiz: Path, tmp_path: Path) -> None:
    arguments = ("--layers", "99", "--output", tmp_path / "out")
    shown = call_tiller("train", quiz, "--name", "x", *arguments, environ={"TILLER_LOG_LEVEL": "error"})
    assert (shown.returncode, shown.stdout, shown.stderr.count("\n")) == (2, "", 1), shown.stderr
    assert shown.stderr.startswith("tiller: --layers: 99 is outside the model")


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["train", "none.jsonl", "--name", "x"], "none.jsonl cannot be read: No such file"),
        (["train", "task:bbq/religon", "--name", "x"], "did you mean one of bbq/religion"),
        (["train", "few.jsonl", "--name", "x"], "few.jsonl: expected at least 8 items, got 1"),
        (["evaluate", "nobody", "few.jsonl"], "few.jsonl: expected at least 8 items, got 1"),
        (["train", "few.jsonl", "--name", "x", "--url", "http://127.0.0.1:1"], "no server answers"),
    ],
)
def test_failures_are_one_line(command: list[str], said: str, tmp_path: Path) -> None:
    (tmp_path / "few.jsonl").write_text('{"question": "?", "choices": ["a", "b"], "answer": 0}', encoding="utf-8")
    command = [str(tmp_path / word) if word.endswith(".jsonl") else word for word in command]
    environ = {"TILLER_DATA_DIR": str(tmp_path / "data")}
    shown = call_tiller(*command, "--output", tmp_path / "out", environ=environ)
    assert (shown.returncode, shown.stdout, shown.stderr.count("\n")) == (1, "", 1)
    assert said in shown.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_vectors_that_cannot_be_evaluated_are_named(quiz: Path, tmp_path: Path) -> None:
    (tmp_path / "v.pt").write_bytes(b"nothing")
    for place, said in (
        ("nobody", "VECTOR nobody: no such file, and no vector of that name"),
        ("./none.safetensors", "none.safetensors cannot be read"),
        (str(tmp_path / "v.pt"), "unknown file format: expected one of"),
    ):
        environ = {"TILLER_LOG_LEVEL": "error", "TILLER_DATA_DIR": str(tmp_path / "data")}
        shown = tiller("evaluate", place, quiz, "--output", tmp_path / "out", environ=environ)
        assert (shown.returncode, shown.stderr.count("\n")) == (1, 1), shown.stderr
        assert said in shown.stderr
    shown = tiller("evaluate", tmp_path / "v.pt", quiz, "--url", "http://127.0.0.1:1", "--output", tmp_path / "out")
    assert (shown.returncode, "tiller vectors put NAME" in shown.stderr) == (2, True)


def test_help_names_the_commands_and_the_rows() -> None:
    shown = succeeded("--help")
    for command in ("train", "evaluate", "sweep"):
        assert f"    {command} " in shown
        assert "answer_matching_behavior" in succeeded(command, "--help")
    for command in ("train", "sweep"):
        for flag in ("--variant", "--site"):
            assert f"{flag} NAME,…" in succeeded(command, "--help"), "several are separated by commas"


def test_the_client_loads_no_tensor_library(quiz: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from server.cli import main\n"
        f"assert main(['train', {str(quiz)!r}, '--name', 'x', '--url', 'http://127.0.0.1:1'], {{}}) == 1\n"
        "assert main(['sweep', 'x', '--layers', 'y'], {}) == 2\n"
        "print([name for name in ('torch', 'transformers', 'fastapi', 'numpy') if name in sys.modules])"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment(), capture_output=True, encoding="utf-8", check=False
    )
    assert shown.stdout == "[]\n", shown.stderr
