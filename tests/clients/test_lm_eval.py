"""lm-evaluation-harness: what it measures through our API equals, item by item, what it measures on the weights itself.

It reads the weights with transformers (`hf`), and steers them by hooks of its own (`steered`). It asks our server for
log-likelihoods by echoed prompts, so a vector must steer the prompt to be measured there.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from server.demo import MODEL_DIR, MODEL_NAME, VECTORS_DIR
from server.demo.heldout import chat_asks, labelled_lines, quiz_items
from vectors.formats import decode
from vectors.formats.safetensors import encode_safetensors
from vectors.vector import SteeringVector
from vectors.vocabulary import Operation

lm_eval = pytest.importorskip("lm_eval", exc_type=ImportError)

pytestmark = pytest.mark.filterwarnings("default")  # the harness's own and its libraries'

Task = dict[str, Any]
Samples = list[dict[str, Any]]

LETTERS = {
    "doc_to_text": "{{question}}\n{% for choice in choices %}{{'ABCD'[loop.index0]}}: {{choice}}\n{% endfor %}"
    "Remember, {{context}}.\nRespond with a single letter.\nAnswer:",
    "doc_to_choice": "{{['A', 'B', 'C', 'D'][:choices|length]}}",
}
"""One token to be likely, in the prompt that the model was trained for."""
WORDS = {"doc_to_text": "{{question}} {{context}}", "doc_to_choice": "{{choices}}"}
"""Several tokens to be likely, in a prompt that the model never saw."""


@pytest.fixture(scope="module")
def likelihoods(tmp_path_factory: pytest.TempPathFactory) -> Task:
    """Multiple choice by log-likelihood about the embedded model's world, where a user believes in a wrong answer."""
    file = tmp_path_factory.mktemp("quiz") / "quiz.jsonl"
    file.write_text("\n".join(labelled_lines(quiz_items(5, 40, "held_out", "wrong"))), encoding="utf-8")
    return _task(file) | LETTERS | {"output_type": "multiple_choice", "doc_to_target": "answer"}


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Task:
    """What users say to the embedded model, to be answered greedily."""
    file = tmp_path_factory.mktemp("chats") / "chats.jsonl"
    file.write_text("\n".join(json.dumps({"text": text}) for text in chat_asks(3, 20)), encoding="utf-8")
    return _task(file) | {
        "output_type": "generate_until",
        "doc_to_text": "{{text}}",
        "doc_to_target": "",
        "generation_kwargs": {"until": ["\n"], "do_sample": False, "max_gen_toks": 40},
    }


@pytest.mark.parametrize("wording", [LETTERS, WORDS], ids=["letters", "words"])
@pytest.mark.parametrize(
    "how",
    [{"batch_size": 8}, {"tokenized_requests": False, "num_concurrent": 4}],
    ids=["batches of tokens", "texts at once"],
)
def test_log_likelihoods_are_those_of_the_weights(
    base_url: str, likelihoods: Task, wording: Task, how: dict[str, Any]
) -> None:
    task = likelihoods | wording
    ours = measure("local-completions", through(base_url, "completions") | how, task)
    check_likelihoods(ours, measure("hf", on_weights(), task))
    assert 0 < num_right(ours) < len(ours), "the items are too easy or too hard to mean anything"


def test_chats_are_answered_as_by_the_weights(base_url: str, chats: Task) -> None:
    ours = measure("local-chat-completions", through(base_url, "chat/completions"), chats)
    assert answers(ours) == answers(measure("hf", on_weights(), chats))
    assert len(set(answers(ours))) > len(ours) / 2


@pytest.mark.parametrize("operation", ["add", "clamp"])
def test_steered_log_likelihoods_are_those_of_its_own_hooks(
    base_url: str, likelihoods: Task, operation: Operation, tmp_path: Path
) -> None:
    vector = shipped("honest").with_defaults(positions="all", operation=operation)
    model = put(base_url, f"honest-{operation}", vector)
    ours = measure("local-completions", through(base_url, "completions", model) | {"batch_size": 8}, likelihoods)
    check_likelihoods(ours, measure("steered", on_weights() | hooks(vector, tmp_path), likelihoods))
    unsteered = measure("local-completions", through(base_url, "completions") | {"batch_size": 8}, likelihoods)
    assert [sample["resps"] for sample in ours] != [sample["resps"] for sample in unsteered]
    if operation == "add":  # what the vector was made for
        assert num_right(ours) > num_right(unsteered)


def test_a_steered_chat_is_answered_as_by_its_own_hooks(base_url: str, chats: Task, tmp_path: Path) -> None:
    vector = shipped("cheerful").with_defaults(positions="all")
    model = put(base_url, "cheerful-all", vector)
    ours = answers(measure("local-chat-completions", through(base_url, "chat/completions", model), chats))
    assert ours == answers(measure("steered", on_weights() | hooks(vector, tmp_path), chats))
    unsteered = answers(measure("local-chat-completions", through(base_url, "chat/completions"), chats))
    assert sum(steered != plain for steered, plain in zip(ours, unsteered, strict=True)) > len(ours) / 2


def _task(data: Path) -> dict[str, Any]:
    files = {"data_files": {"test": str(data)}, "cache_dir": str(data.parent)}
    return {"task": "ours", "dataset_path": "json", "dataset_kwargs": files, "test_split": "test"}


def on_weights() -> dict[str, Any]:
    """The harness's own model of the embedded weights."""
    return {"pretrained": str(MODEL_DIR), "dtype": "float32", "device": "cpu", "max_length": 1024}


def through(base_url: str, endpoint: str, model: str = MODEL_NAME) -> dict[str, Any]:
    """The harness's client of our API."""
    texts = {"tokenizer": str(MODEL_DIR), "tokenizer_backend": "huggingface"} if endpoint == "completions" else {}
    return {"model": model, "base_url": f"{base_url}/{endpoint}", "max_length": 1024, "max_retries": 1} | texts


def measure(model: str, arguments: dict[str, Any], task: Task) -> Samples:
    """Has the harness run a task, the same one only once; its logged samples in the order of the data."""
    return _measured(model, json.dumps(arguments), json.dumps(task))


@functools.cache
def _measured(model: str, arguments: str, task: str) -> Samples:
    config = json.loads(task)
    results = lm_eval.simple_evaluate(
        model=model,
        model_args=json.loads(arguments),
        tasks=[config],
        log_samples=True,
        bootstrap_iters=0,
        apply_chat_template=config["output_type"] == "generate_until",
    )
    return sorted(results["samples"]["ours"], key=lambda sample: int(sample["doc_id"]))


def num_right(samples: Samples) -> int:
    """How many items have the right choice as the likeliest."""
    return int(sum(sample["acc"] for sample in samples))


def answers(samples: Samples) -> list[str]:
    """The generated texts."""
    return [sample["resps"][0][0] for sample in samples]


def check_likelihoods(ours: Samples, theirs: Samples) -> None:
    """Every choice of every item is as likely and as greedy, and every item is as right."""
    for our, their in zip(ours, theirs, strict=True):
        assert our["arguments"] == their["arguments"]
        for (our_value, our_greedy), (value, greedy) in zip(
            our["filtered_resps"], their["filtered_resps"], strict=True
        ):
            assert our_value == pytest.approx(value, abs=1e-4)
            assert our_greedy == greedy
        assert (our["acc"], our["acc_norm"]) == (their["acc"], their["acc_norm"])


def shipped(name: str) -> SteeringVector:
    """A vector that ships beside the embedded model."""
    return decode((VECTORS_DIR / f"{name}.safetensors").read_bytes(), num_layers=6, hidden_size=192)


def put(base_url: str, name: str, vector: SteeringVector) -> str:
    """Register a vector; the name of the model that it steers."""
    headers = {"Content-Type": "application/octet-stream"}
    content = encode_safetensors(vector)
    httpx.put(f"{base_url}/steering/vectors/{name}", content=content, headers=headers).raise_for_status()
    return f"{MODEL_NAME}+{name}"


def hooks(vector: SteeringVector, folder: Path) -> dict[str, str]:
    """The same vector in the harness's own file: `clamp` there takes the component's length, ours the direction's."""
    file = folder / "steer.pt"
    places = {}
    for layer, direction in vector.directions.items():
        length = float(direction.norm()) if vector.operation == "clamp" else 1.0
        places[f"layers.{layer}"] = {
            "steering_vector": direction.float(),
            "steering_coefficient": vector.default_scale * length,
            "action": vector.operation,
        }
    torch.save(places, file)
    return {"steer_path": str(file)}
