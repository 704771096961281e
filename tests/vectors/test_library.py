"""`import vectors`: what it offers and what it loads, files in and out, and training that equals the server's."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

import vectors
from server.demo import MODEL_DIR
from server.demo.heldout import quiz_items
from server.engine.engine import BatchingEngine, EngineSettings
from server.engine.model import load_model
from server.text import load_text
from server.training.engine_view import EngineView
from tests.families import HIDDEN, LAYERS, build
from tests.server.cli.running import ROOT, environment
from vectors.data import read_data
from vectors.errors import InvalidData, InvalidMethod, InvalidVector, UnknownFormat
from vectors.formats import decode
from vectors.formats.gguf import encode_gguf
from vectors.formats.safetensors import encode_safetensors
from vectors.training.method import Method
from vectors.training.progress import Progress
from vectors.training.task import Task, carry_out
from vectors.training.train import TrainingData
from vectors.vector import SteeringVector

SEED = 3


def python(code: str, *, missing: Sequence[str] = ()) -> str:
    """What a program prints in which the packages `missing` cannot be imported."""
    refuse = f"""
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {tuple(missing)!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
"""
    done = subprocess.run(
        [sys.executable, "-c", refuse + code],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_public_name_is_there_for_programs_and_for_type_checkers() -> None:
    tree = ast.parse(Path(vectors.__file__).read_text(encoding="utf-8"))
    typed = {
        alias.asname or alias.name: node.module
        for block in tree.body
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert sorted(vectors.__all__) == sorted({*typed, "MissingDependency", "VectorsError"})
    for name in vectors.__all__:
        assert name in dir(vectors)
        found = getattr(vectors, name)
        assert found.__name__ == name
        assert found.__module__ == typed.get(name, "vectors.errors")
    with pytest.raises(AttributeError, match="module 'vectors' has no attribute 'stear'"):
        _ = vectors.stear  # type: ignore[attr-defined]


HEAVY = ("torch", "numpy", "transformers", "safetensors", "fastapi")


def test_a_client_loads_no_tensor_library() -> None:
    shown = python(
        f"import vectors, vectors.client\nvectors.VectorClient, vectors.AsyncVectorClient, vectors.ClientError\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    assert shown == "[]\n"


def test_a_client_needs_no_tensor_library() -> None:
    shown = python(
        """
import vectors
vectors.AsyncVectorClient("http://127.0.0.1:1")
try:
    vectors.VectorClient("http://127.0.0.1:1").get("x")
except vectors.ClientError as error:
    print(error)
for name in ("SteeringVector", "load", "save", "steer", "train"):
    try:
        getattr(vectors, name)
    except vectors.MissingDependency as error:
        print(error)
""",
        missing=HEAVY,
    ).splitlines()
    assert shown[0] == "no server answers at http://127.0.0.1:1: is 'tiller serve' running?"
    steer = "which is not installed: pip install 'tiller[steer]'"
    assert shown[1] == f"vectors.SteeringVector needs torch, {steer}"
    assert shown[2:5] == [f"vectors.{name} needs torch, {steer}" for name in ("load", "save", "steer")]
    assert shown[5].startswith("vectors.train needs ")
    assert shown[5].endswith("which is not installed: pip install 'tiller[train]'")


def test_tensors_that_a_client_cannot_hold_are_refused_with_the_extra() -> None:
    shown = python(
        """
import vectors
from vectors.client import calls
from vectors.client.answers import Answer
try:
    calls.vector("x", None).read(Answer(200, "application/octet-stream", b""))
except vectors.MissingDependency as error:
    print(error)
""",
        missing=["torch", "numpy"],
    )
    assert shown == "reading a vector's tensors needs torch, which is not installed: pip install 'tiller[steer]'\n"


@pytest.fixture
def vector() -> SteeringVector:
    draw = torch.Generator().manual_seed(0)
    directions = {layer: torch.randn(HIDDEN, generator=draw) for layer in (1, 2)}
    return SteeringVector(directions, default_scale=0.5, description="an example", model="tiny")


@pytest.mark.parametrize("suffix", [".safetensors", ".gguf", ".GGUF"])
def test_what_is_saved_is_loaded(vector: SteeringVector, tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"vector{suffix}"
    vectors.save(vector, file)
    if suffix == ".safetensors":
        assert file.read_bytes() == encode_safetensors(vector)
        assert vectors.load(file) == vectors.load(str(file), build("llama")) == vector
    else:
        assert file.read_bytes() == encode_gguf(vector)
        assert vectors.load(file, default_scale=2.0).default_scale == 2.0
    assert all(torch.equal(vectors.load(file).directions[layer], vector.directions[layer]) for layer in (1, 2))
    assert os.listdir(tmp_path) == [file.name]


def test_the_format_can_be_said_and_another_is_refused(vector: SteeringVector, tmp_path: Path) -> None:
    vectors.save(vector, tmp_path / "vector", format="gguf")
    assert (tmp_path / "vector").read_bytes()[:4] == b"GGUF"
    for name, shown in (("vector.pt", "'pt'"), ("other", "''")):
        with pytest.raises(InvalidVector, match=f"expected one of safetensors, gguf as format or suffix, got {shown}"):
            vectors.save(vector, tmp_path / name)
    assert os.listdir(tmp_path) == ["vector"]


def saved(content: object, folder: Path) -> Path:
    file = folder / "vector.pt"
    torch.save(content, file)
    return file


def test_a_pytorch_file_says_its_layers_or_is_told(tmp_path: Path) -> None:
    direction = torch.arange(1.0, HIDDEN + 1)
    assert vectors.load(saved({2: direction}, tmp_path)).layers == (2,)
    assert vectors.load(saved({2: direction[None]}, tmp_path)).layers == (2,)
    for one in (direction, direction[None]):
        assert vectors.load(saved(direction, tmp_path), layer=7).layers == (7,)
        with pytest.raises(InvalidVector, match="does not say its layer"):
            vectors.load(saved(one, tmp_path), num_layers=LAYERS)


@pytest.mark.parametrize(("num_rows", "first"), [(LAYERS, 0), (LAYERS + 1, 1)])
def test_rows_mean_something_only_beside_a_model(tmp_path: Path, num_rows: int, first: int) -> None:
    rows = torch.randn(num_rows, HIDDEN, generator=torch.Generator().manual_seed(0))
    file = saved(rows, tmp_path)
    with pytest.raises(InvalidVector, match=f"{num_rows} rows, and the first may be the embeddings"):
        vectors.load(file)
    for told in ({"num_layers": LAYERS}, {"model": build("llama")}):
        found = vectors.load(file, **told)
        assert found.layers == tuple(range(LAYERS - 1))  # the last row was read behind the final norm
        assert torch.equal(found.directions[0], rows[first])


def test_a_vector_that_does_not_fit_is_refused(vector: SteeringVector, tmp_path: Path) -> None:
    file = tmp_path / "vector.safetensors"
    vectors.save(SteeringVector({LAYERS: torch.ones(HIDDEN)}), file)
    for told in ({"num_layers": LAYERS}, {"model": build("llama")}, {"hidden_size": HIDDEN + 1}):
        with pytest.raises(InvalidVector, match=r"outside the model|hidden size"):
            vectors.load(file, **told)
    with pytest.raises(InvalidVector, match="expected either model or num_layers"):
        vectors.load(file, build("llama"), num_layers=LAYERS)
    file.write_bytes(b"no vector")
    with pytest.raises(UnknownFormat):
        vectors.load(file)


def test_a_tensor_without_end_is_refused(tmp_path: Path) -> None:
    endless = torch.ones(1).expand(1 << 40)
    for content in (endless, {0: endless}):
        with pytest.raises(InvalidVector, match="larger than the file's data"):
            vectors.load(saved(content, tmp_path), layer=0 if content is endless else None)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions whose user believes something wrong."""
    file = tmp_path_factory.mktemp("data") / "beliefs.jsonl"
    rows = [
        {"question": item.question, "choices": item.choices, "answer": item.answer, "context": item.context}
        for item in quiz_items(5, 48, "held_out", "wrong")
    ]
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(MODEL_DIR)


@pytest.mark.parametrize(
    "options",
    [
        {"variant": "pas_full", "site": ["residual", "mlp"], "layers": [3], "scales": [0.5, 2.0]},
        {"variant": "pas_full", "layers": [3], "prompt": "chat", "letters": "paper", "scales": [0.5, 1.0]},
    ],
    ids=["raw", "chat"],
)
def test_training_is_the_servers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, labelled: Path, options: dict[str, Any]
) -> None:
    seen: list[Progress] = []
    ours = vectors.train(model, tokenizer, labelled, seed=SEED, report=seen.append, **options)
    loaded = load_model(MODEL_DIR, device="cpu", dtype="float32")
    data = TrainingData(read_data(labelled.read_bytes(), labelled.name))
    task = Task(method=Method.from_json(options))
    with BatchingEngine(loaded, EngineSettings(num_pages=2000, page_size=8, max_batch_tokens=512)) as engine:
        view = EngineView(engine, load_text(MODEL_DIR))
        theirs = carry_out(task, view, data, seed=SEED, report=lambda progress: None)

    assert ours.vector is not None
    assert theirs.vector is not None
    assert (ours.is_recommended, ours.vector.layers) == (theirs.is_recommended, theirs.vector.layers)
    (direction,), (expected,) = (one.directions.values() for one in (ours.vector, theirs.vector))
    assert torch.cosine_similarity(direction, expected, dim=0) > 0.9999
    assert float(direction.norm()) == pytest.approx(float(expected.norm()), rel=1e-3)
    for name in ("site", "positions", "operation", "default_scale", "parts"):
        assert getattr(ours.vector, name) == getattr(theirs.vector, name)
    assert ours.reason == theirs.reason
    for part in ("method", "data", "baseline", "chosen", "grid", "test", "retention"):
        assert_same(ours.report[part], theirs.report[part], part)

    assert ours.files.keys() == dict(theirs.files).keys()
    assert json.loads(ours.files["report.json"]) == ours.report
    assert list(dict.fromkeys(step.phase for step in seen)) == [
        "reading the data",
        "answering",
        "reading activations",
        "searching",
        "testing",
        "retention",
    ]
    assert not any(module._forward_hooks for module in model.modules())


def assert_same(found: Any, expected: Any, place: str) -> None:
    """The same report, its numbers but for rounding."""
    if isinstance(expected, dict | list):
        entries = expected.items() if isinstance(expected, dict) else enumerate(expected)
        assert len(found) == len(expected), place
        for name, entry in entries:
            assert_same(found[name], entry, f"{place}.{name}")
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-6), place
    else:
        assert found == expected, place


def test_a_training_without_gain_gives_no_vector_unless_asked(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, labelled: Path
) -> None:
    options: dict[str, Any] = {"variant": "pas_full", "layers": range(1), "scales": (1e-6,), "max_items": 20}
    result = vectors.train(model, tokenizer, labelled, **options)
    assert result.vector is None
    assert not result.is_recommended
    verdict, accuracy, chosen = result.summary.splitlines()
    assert verdict == f"not recommended: {result.reason}"
    before, after = result.report["baseline"]["test"]["value"], result.report["test"]["accuracy"]["value"]
    assert accuracy == f"test accuracy {100 * before:.1f} % → {100 * after:.1f} %"
    assert chosen == "pas_full, residual layer 0, scale 1e-06"
    kept = vectors.train(model, tokenizer, labelled, allow_no_gain=True, **options)
    assert kept.vector is not None
    assert kept.vector.model == "model"
    assert kept.vector.training is not None
    assert kept.vector.training["recommended"] is False


def test_validation_and_retention_come_from_files(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, labelled: Path, tmp_path: Path
) -> None:
    rows = labelled.read_text(encoding="utf-8").splitlines()
    (tmp_path / "other.jsonl").write_text("\n".join(rows[:9]), encoding="utf-8")
    (tmp_path / "prose.txt").write_text("A tune.\n\nAnother tune of the town.", encoding="utf-8")
    data = read_data("\n".join(rows[9:]).encode(), "all")
    result = vectors.train(
        model,
        tokenizer,
        data,
        validation=tmp_path / "other.jsonl",
        retention=tmp_path / "prose.txt",
        variant="pas_full",
        layers=[3],
        scales=[1.0],
        max_items=20,
    )
    assert result.report["data"]["name"] == "all"
    assert result.report["data"]["split"]["validation"] == 9
    assert result.report["retention"]["perplexity"]["num_texts"] == 2


def test_what_cannot_be_trained_is_refused_by_name(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, labelled: Path, tmp_path: Path
) -> None:
    with pytest.raises(InvalidMethod, match="varient"):
        vectors.train(model, tokenizer, labelled, varient="pas_full")
    with pytest.raises(InvalidMethod, match="layers: 6 is outside the model"):
        vectors.train(model, tokenizer, labelled, layers=[6])
    (tmp_path / "few.jsonl").write_text('{"question": "Q", "choices": ["a", "b"], "answer": 0}\n', encoding="utf-8")
    with pytest.raises(InvalidData, match=r"few\.jsonl"):
        vectors.train(model, tokenizer, tmp_path / "few.jsonl")


def test_a_shipped_vector_is_loaded_for_its_model(model: PreTrainedModel) -> None:
    file = MODEL_DIR.parent / "vectors" / "cheerful.safetensors"
    assert vectors.load(file, model) == decode(file.read_bytes())
