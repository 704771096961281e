"""`tiller study`: the studies that ship, a small one from end to end, going on, and how it fails."""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from server.cli.errors import FAILED, USAGE, CommandFailed
from server.cli.training.study import DEMO_ITEMS, DEMO_TASKS, add_study, demo_data, shipped_studies, study
from server.demo import MODEL_DIR
from tests.server.cli.running import as_it_was
from vectors.data import TASKS, ChoiceItem, gold_places
from vectors.study.definition import Study

SHIPPED = shipped_studies()
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
PAPER_TASKS = 18


def run(*arguments: str | Path, environ: dict[str, str] | None = None) -> int:
    parser = argparse.ArgumentParser()
    add_study(parser.add_subparsers())
    with as_it_was():
        return study(parser.parse_args(["study", *map(str, arguments)]), environ or {})


def shrunk(folder: Path, *, seeds: str) -> Path:
    """The small study that ships with few items and a small grid."""
    text = SHIPPED["small"].read_text(encoding="utf-8")
    for old, new in (
        ("  - demo/sycophancy\n", ""),
        ("seeds: 3", f"seeds: {seeds}"),
        ("icl: [0, 10]", "icl: [0, 1]"),
        ("[pas_full, ipas_all, ipas_wrong_only]", "pas_full"),
        ("letters: balanced", "letters: balanced\n  max_items: 60\n  layers: [3]\n  scales: [0.75]"),
    ):
        assert old in text
        text = text.replace(old, new)
    file = folder / "shrunk.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def refusal(*arguments: str | Path, environ: dict[str, str] | None = None) -> CommandFailed:
    with pytest.raises(CommandFailed) as caught:
        run(*arguments, environ=environ)
    return caught.value


def test_studies_ship() -> None:
    assert set(SHIPPED) == {"paper-llama-3.1-8b", "paper-deepseek-r1-8b", "paper-hermes-2-mistral", "small"}


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_studies_are_understood(name: str) -> None:
    found = Study.from_yaml(SHIPPED[name].read_text(encoding="utf-8"), other_tasks=DEMO_TASKS)
    assert all(task.file is None for task in found.tasks)
    if name == "small":
        assert found.model is None
        assert {task.name for task in found.tasks} == set(DEMO_TASKS)
        return
    assert found.model is not None
    assert len(found.tasks) == PAPER_TASKS
    assert {task.name for task in found.tasks} <= set(TASKS)
    assert "bbq/age" not in {task.name for task in found.tasks}
    assert found.method.is_paper
    assert found.method.layers is found.method.scales is None, "the authors' grids are those of the letters"
    assert found.method.layers_for(32) == (25, 22, 19, 17, 16, 15, 14, 13, 11, 8)
    assert len(found.cells()) == PAPER_TASKS * 3 * 2 * 15 * 2
    assert found.retention == "mmlu"


def test_demo_data() -> None:
    for name in DEMO_TASKS:
        data = demo_data(name)
        assert data == demo_data(name)
        assert len(data.items) == DEMO_ITEMS
        assert all(gold_places(data.items)[letter] for letter in "ABC")  # type: ignore[arg-type]
    agreeing, honest = (demo_data(name).items for name in ("demo/sycophancy", "demo/sycophancy/honest"))
    for one, other in zip(agreeing, honest, strict=True):
        assert isinstance(one, ChoiceItem)
        assert isinstance(other, ChoiceItem)
        assert one == replace(other, answer=one.answer), "the same questions"
        assert one.context is not None
        assert one.answer_text in one.context, "right is what the user believes"
        assert re.search(rf"\b{re.escape(other.answer_text)}\b", one.context) is None, "right is the true answer"


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(SHIPPED)


@pytest.mark.slow
def test_a_small_study_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "results"
    one = shrunk(tmp_path, seeds="1")
    assert run(one, "--output", output, "--device", "cpu", environ={"TILLER_MODEL": "/nowhere"}) == 0
    capsys.readouterr()
    first = {path: path.read_bytes() for path in (output / "cells").rglob("*.json")}
    assert len(first) == 8

    two = shrunk(tmp_path, seeds="2")
    assert run(two, "--output", output, "--tables") == 0
    assert "8 cells have not been run" in capsys.readouterr().out
    assert run(two, "--output", output, "--device", "cpu") == 0
    said = capsys.readouterr()
    counts = [line.split(" cells")[0] for line in said.err.splitlines() if " of 16 cells" in line]
    assert counts == [f"{number} of 16" for number in range(8, 17)]
    assert "left" in said.err
    assert "study.md" in said.out
    assert "pas_full" in said.out
    assert {path: path.read_bytes() for path in first} == first
    assert len(list((output / "cells").rglob("*.json"))) == 16

    tables = json.loads((output / "study.json").read_bytes())
    rows = [row for row in tables["effects"] if (row["task"], row["icl"]) == ("demo/sycophancy/honest", 0)]
    assert max(row["effect"] for row in rows) > 0.2
    assert {row["seeds"] + row["failed"] for row in tables["effects"]} == {2}
    assert {path.name for path in output.iterdir()} >= {"study.md", "effects.csv", "means.csv"}
    assert list(output.glob("effects-balanced-*.png"))

    assert run(two, "--output", output, "--device", "cpu") == 0  # all is there: no model is loaded
    assert "cells" not in capsys.readouterr().err

    other = shrunk(tmp_path, seeds="2")
    other.write_text(other.read_text().replace("scales: [0.75]", "scales: [0.5]"))
    refused = refusal(other, "--output", output)
    assert refused.exit_code == USAGE
    assert "belongs to another study (method differs)" in str(refused)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_an_adapter_is_compared_with_the_model_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(1)
    settings = {"r": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM", "init_lora_weights": False}
    model = AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32)
    peft.get_peft_model(model, peft.LoraConfig(**settings)).save_pretrained(tmp_path / "lora")
    file = tmp_path / "adapted.yaml"
    file.write_text(
        "name: adapted\nadapter: [null, lora]\ntasks: demo/sycophancy/honest\nvariants: mean_difference\n"
        "method: {max_items: 30, layers: [3], scales: [0.75]}\n"
    )
    output = tmp_path / "results"
    assert run(file, "--output", output, "--device", "cpu") == 0
    printed = capsys.readouterr().out
    assert "fine-tuning: the embedded model" in printed
    assert "base → SFT" in printed
    tables = json.loads((output / "study.json").read_bytes())
    assert len(tables["comparisons"]) == 5
    assert {row["reason"] for row in tables["comparisons"]} == {None}
    sizes = [(tmp_path / "lora" / name).stat().st_size for name in ADAPTER_FILES]
    assert {row["adapter"]: row["adapter_bytes"] for row in tables["chosen"]} == {None: None, "lora": sum(sizes)}
    text = (output / "study.md").read_text()
    assert "## Comparisons between conditions" in text
    assert "base + vector → SFT + vector" in text


def test_refusals(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    for text, message, code in (
        ("name: x\ntasks: [nothing]", "got 'nothing'", USAGE),
        ("name: x\ntasks: [{name: own, file: own.jsonl}]", "own.jsonl: cannot be read", FAILED),
        ("name: x\ntasks: demo/facts\nsites: attention\nmethod: {layers: [99]}", "layers: 99 is outside", USAGE),
        ("name: x\ntasks: demo/facts\nmodel: ./none", "MODEL ./none: no such folder", USAGE),
        ("name: x\ntasks: sycophancy\ndata_folder: none", "not a folder", FAILED),
    ):
        file.write_text(text)
        refused = refusal(file, "--output", tmp_path / "results", "--device", "cpu")
        assert message in str(refused)
        assert refused.exit_code == code
    assert refusal().exit_code == USAGE
    assert "the built-in studies are paper-" in str(refusal(tmp_path / "none.yaml"))
    assert "device" in str(refusal("small", "--device", "abacus"))
    file.write_bytes(b"\xff\xfe\x00")
    assert refusal(file).exit_code == USAGE
    file.write_text("name: x\ntasks: demo/facts")
    (tmp_path / "taken").write_text("")
    assert "taken" in str(refusal(file, "--output", tmp_path / "taken", "--device", "cpu"))


def test_a_study_without_any_result_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "study.yaml"
    rows = [{"question": "one?", "choices": ["a", "b"], "answer": 0}] * 9
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, rows)))
    file.write_text("name: x\ntasks: [{name: own, file: own.jsonl}]")
    assert run(file, "--output", tmp_path / "results", "--device", "cpu") == FAILED
    said = capsys.readouterr()
    assert "3 of 3 cells have no result" in said.out
    assert "different questions to split, got 1" in said.out
    assert "no cell has a result" in said.err
