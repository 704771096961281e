"""A calibration's figures are those of a plain model, and its job publishes them with the vector."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from server.engine.engine import BatchingEngine, EngineSettings
from server.jobs.records import JobRecord
from server.jobs.trainer import Outcome, Progress, ReadFile
from server.text import TextProcessor
from server.training.engine_view import EngineView
from server.training.steering_trainer import SteeringTrainer
from tests.reference import Steer, steered_logits
from tests.server.api.serving import MODEL, Server, byte_tokenizer, direction, serving, tiny_model, tiny_module
from vectors.calibration.calibrate import Asked, calibrate
from vectors.calibration.measure import NUM_MOVED, NUM_WRITTEN
from vectors.calibration.prompts import PROMPTS
from vectors.calibration.search import TOLERANCE
from vectors.errors import InvalidMethod
from vectors.vector import SteeringVector

LIMITS = EngineSettings(num_pages=50, page_size=64, max_running=16, max_batch_tokens=256)
JOBS = "/v1/fine_tuning/jobs"
VECTOR = SteeringVector({1: direction(1, 0.25)}, default_scale=2.0)
NEWER = dataclasses.replace(VECTOR, description="newer")
TEMPLATED: Any = byte_tokenizer().apply_chat_template(
    [[{"role": "user", "content": prompt}] for prompt in PROMPTS[:8]], add_generation_prompt=True, return_dict=False
)
TOKENS = [tuple(tokens) for tokens in TEMPLATED]
"""The shipped prompts that a job with the fewest uses, as the model reads them."""


class Swapping(SteeringTrainer):
    """While it calibrates the vector `moving`, that is replaced."""

    def run(
        self,
        job: JobRecord,
        read_file: ReadFile,
        report: Callable[[Progress], None],
        is_cancelled: Callable[[], bool],
    ) -> Outcome:
        def report_and_swap(progress: Progress) -> None:
            if job.name == "moving":
                self._store.put("moving", NEWER)
            report(progress)

        return super().run(job, read_file, report_and_swap, is_cancelled)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder: Path = tmp_path_factory.mktemp("jobs")
    with serving(folder, trainer=Swapping, engine_settings=LIMITS) as server:
        server.store.put("calm", VECTOR)
        server.store.put("fixed", dataclasses.replace(VECTOR, operation="clamp"))
        yield server


def job(server: Server, **steering: Any) -> dict[str, Any]:
    body = {"model": MODEL, "method": {"type": "steering", "steering": {"task": "calibrate", **steering}}}
    answer = server.http.post(JOBS, json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


@pytest.fixture(scope="module")
def calibrated(server: Server) -> dict[str, Any]:
    """The report of a job that calibrated the vector `calm`; the job itself is under `job`."""
    created = job(server, vector="calm", max_prompts=8)
    server.jobs.wait(created["id"], timeout=120)
    ended = server.http.get(f"{JOBS}/{created['id']}").json()
    assert ended["status"] == "succeeded", ended
    report: dict[str, Any] = server.http.get(f"/v1/files/{ended['result_files'][0]}/content").json()
    return report | {"job": ended}


@functools.cache
def plain_module() -> LlamaForCausalLM:
    return tiny_module()


def plain_logprobs(prompt: Sequence[int], tokens: Sequence[int], scale: float) -> torch.Tensor:
    """Log-probabilities `[tokens, vocabulary]` of a plain pass over the prompt and `tokens`, steered."""
    steers = (Steer(VECTOR.directions[1], 1, scale=scale),) if scale else ()
    logits = steered_logits(plain_module(), (*prompt, *tokens), steers, len(prompt))
    return torch.log_softmax(logits.double(), -1)[len(prompt) - 1 : -1]


@functools.cache
def plain_text(prompt: tuple[int, ...], scale: float, count: int) -> tuple[int, ...]:
    """A greedy continuation, a token and a whole pass at a time."""
    found: list[int] = []
    for _ in range(count):
        found.append(int(plain_logprobs(prompt, (*found, 0), scale)[-1].argmax()))
        if found[-1] == 2:  # the end token
            break
    return tuple(found)


def test_the_scale_moves_the_model_by_as_much_when_it_is_measured_again(calibrated: dict[str, Any]) -> None:
    continued = [plain_text(prompt, 0.0, NUM_MOVED) for prompt in TOKENS]
    for scale in calibrated["calibration"]["kl_scale"]:
        found: list[float] = []
        for prompt, text in zip(TOKENS, continued, strict=True):
            for p, q in zip(plain_logprobs(prompt, text, scale), plain_logprobs(prompt, text, 0.0), strict=True):
                found.append(sum(math.exp(a) * (a - b) for a, b in zip(p.tolist(), q.tolist(), strict=True)))
        assert float(np.quantile(found, 0.95)) == pytest.approx(1.0, rel=TOLERANCE + 1e-3), scale


def test_fluency_and_norms_are_those_of_a_plain_model(calibrated: dict[str, Any]) -> None:
    row = min(calibrated["fluency"], key=lambda one: abs(one["scale"] - 0.25))
    logprobs: list[float] = []
    pairs, different = 0, 0
    for prompt in TOKENS:
        text = plain_text(prompt, row["scale"], NUM_WRITTEN)
        logprobs += plain_logprobs(prompt, text, 0.0).gather(1, torch.tensor(text)[:, None])[:, 0].tolist()
        pairs, different = pairs + len(text) - 1, different + len({*itertools.pairwise(text)})
    assert row["perplexity"] == pytest.approx(math.exp(-float(np.mean(logprobs))), rel=1e-3)
    assert row["distinct"] == pytest.approx(different / pairs)
    module, norms = plain_module(), []
    for prompt in TOKENS:
        tokens = torch.tensor([[*prompt, *plain_text(prompt, 0.0, NUM_WRITTEN)]])
        with torch.inference_mode():
            hidden = module(tokens, output_hidden_states=True).hidden_states[2][0, 1:]
        norms += hidden.double().norm(dim=-1).tolist()
    assert calibrated["calibration"]["norms"] == {"1": pytest.approx(float(np.mean(norms)), rel=1e-4)}


def test_the_safe_range_is_within_both(server: Server, calibrated: dict[str, Any]) -> None:
    found, published = calibrated["calibration"], server.store.get("calm").vector.calibrated
    assert published is not None
    for side, (safe, kl, fluent) in enumerate(
        zip(found["safe_scale"], found["kl_scale"], found["fluent_scale"], strict=True)
    ):
        assert safe == published.safe_scale[side]
        assert abs(safe) <= min(abs(kl), abs(fluent)) < abs(safe) * 1.01
    for row in calibrated["fluency"]:
        plain = calibrated["unsteered"]
        is_fluent = row["perplexity"] <= 1.5 * plain["perplexity"] and row["distinct"] >= 0.75 * plain["distinct"]
        assert row["is_fluent"] == is_fluent
        if found["safe_scale"][0] <= row["scale"] <= found["safe_scale"][1]:
            assert is_fluent


def test_a_vector_that_is_too_strong_at_every_scale_is_refused() -> None:
    with BatchingEngine(tiny_model(), LIMITS) as engine:
        view = EngineView(engine, TextProcessor(byte_tokenizer()))
        strong = SteeringVector({1: direction(1, 1e6)})
        with pytest.raises(InvalidMethod, match="no scale of either sign"):
            calibrate(view, strong, Asked(1.0, 1.0, TOKENS, "p", "0"), lambda progress: None)


def test_a_job_publishes_the_calibrated_vector(server: Server, calibrated: dict[str, Any]) -> None:
    ended = calibrated["job"]
    assert ended["fine_tuned_model"] == f"{MODEL}+calm"
    vector = server.http.get("/v1/steering/vectors/calm").json()
    assert len(vector["history"]) == 2
    low, high = vector["calibration"]["safe_scale"]
    assert low < 0 < high
    assert vector["calibration"]["prompts"]["count"] == 8
    files = [server.http.get(f"/v1/files/{one}").json()["filename"] for one in ended["result_files"]]
    assert files == ["report.json", "dose.png"]
    answer = server.http.post(
        "/v1/completions", json={"model": f"{MODEL}+calm:50%", "prompt": "Hi", "max_tokens": 2}
    ).json()
    (entry,) = answer["steering"]
    assert entry["scale"] == pytest.approx(high / 2)
    assert entry["relative_dose"] == pytest.approx(
        entry["scale"] * float(VECTOR.norms[1]) / vector["calibration"]["norms"]["1"]
    )


def test_what_cannot_be_calibrated_is_refused_before_it_is_queued(server: Server) -> None:
    files = len(server.jobs.files.list())
    for steering, more, param in (
        ({"task": "calibrate", "vector": "fixed"}, {}, "method.steering.vector"),
        ({"task": "calibrate", "vector": "nobody"}, {}, "method.steering.vector"),
        ({"task": "calibrate"}, {}, "method.steering.vector"),
        ({"task": "calibrate", "vector": "calm", "icl": 3}, {}, "method.steering.icl"),
        ({"task": "calibrate", "vector": "calm"}, {"suffix": "other"}, "suffix"),
        ({}, {}, "training_file"),
    ):
        body = {"model": MODEL, "method": {"type": "steering", "steering": steering}, **more}
        answer = server.http.post(JOBS, json=body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert len(server.jobs.files.list()) == files


def test_a_vector_that_changed_meanwhile_is_left_alone(server: Server) -> None:
    server.store.put("moving", VECTOR)
    created = job(server, vector="moving", max_prompts=8)
    ended = server.jobs.wait(created["id"], timeout=120)
    assert ended.fine_tuned_vector is None
    assert server.store.get("moving").revision == NEWER.revision
    events = server.jobs.database.events(ended.id)
    assert any("has changed since the calibration began" in event.message for event in events)
