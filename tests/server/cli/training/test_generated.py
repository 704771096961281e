"""`tiller evaluate --prompts` against a real server of the embedded model, and judges that are real servers too."""

from __future__ import annotations

import asyncio
import json
import math
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from transformers import AutoModelForCausalLM

from server.demo import MODEL_DIR
from server.demo.heldout import chat_asks
from server.demo.tone import CHEERFUL_WORDS
from tests.server.cli.running import DEADLINE, ServerProcess, call_tiller
from vectors.behaviour.answers import seed_of_sample

KEY = "judge-key-4711"
SHORT = ("--samples", "1", "--max-tokens", "24")


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    # the precision of the reference; as stored, the embedded model computes in bfloat16
    with ServerProcess(tmp_path_factory.mktemp("data"), "--dtype", "float32") as server:
        yield server.wait_until_ready()


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("prompts") / "chat.jsonl"
    file.write_text("".join(json.dumps({"prompt": ask}) + "\n" for ask in chat_asks(5, 8)), encoding="utf-8")
    return file


class ScriptedJudge:
    """An OpenAI-compatible endpoint that rates by a word, and keeps what it was sent.

    It gives each of `at_first` once before it rates, and `always` in place of rating.
    """

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.num_requests = 0
        self.at_first: list[Response] = []
        self.always: Response | None = None
        app = FastAPI()

        @app.post("/v1/chat/completions")
        async def complete(request: Request) -> Response:
            self.num_requests += 1
            if self.at_first:
                return self.at_first.pop(0)
            if self.always is not None:
                return self.always
            if request.headers.get("authorization") != f"Bearer {KEY}":
                return JSONResponse({"error": {"message": f"not valid: {request.headers.get('authorization')}"}}, 401)
            body = await request.json()
            self.bodies.append(body)
            asked = body["messages"][0]["content"]
            text = asked.partition("<text>\n")[2].partition("\n</text>")[0].lower()
            shows = any(word in text for word in CHEERFUL_WORDS)
            reply = "No rating." if "How fluent" in asked and "sigh" in text else f"Rating: {2 if shows else 1}"
            return JSONResponse({"choices": [{"message": {"role": "assistant", "content": reply}}]})

        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
        self._thread = threading.Thread(target=lambda: asyncio.run(self._server.serve([self._socket])))

    def __enter__(self) -> ScriptedJudge:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.should_exit = True
        self._thread.join(DEADLINE)
        self._socket.close()


@pytest.fixture
def judge() -> Iterator[ScriptedJudge]:
    with ScriptedJudge() as running:
        yield running


def evaluated(url: str, prompts: Path, folder: Path, *arguments: str | Path, **environ: str) -> dict[str, Any]:
    """The report of an evaluation, which must succeed."""
    given = ("evaluate", "cheerful", "--prompts", prompts, "--url", url, "--output", folder)
    shown = call_tiller(*given, *arguments, environ=environ)
    assert shown.returncode == 0, shown.stderr
    report: dict[str, Any] = json.loads((folder / "report.json").read_text())
    assert KEY not in shown.stdout + shown.stderr + (folder / "answers.jsonl").read_text() + json.dumps(report)
    report["printed"] = shown.stdout
    return report


def test_answers_are_those_of_the_server_and_scored_by_the_unsteered_model(
    url: str, prompts: Path, tmp_path: Path
) -> None:
    words = tmp_path / "cheerful.txt"
    words.write_text("\n".join(CHEERFUL_WORDS), encoding="utf-8")
    out = tmp_path / "out"
    report = evaluated(url, prompts, out, "--words", words, *SHORT, "--seed", "7", "--scale", "0.6")
    assert "verdict" in report["printed"]
    assert "by a rule (any of the 27 words of cheerful.txt)" in report["reason"]
    assert report["steering"][0]["scale"] == 0.6
    lines = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    assert [line["decoding"] for line in lines] == ["greedy", "sampled"] * 8
    assert lines[3]["seed"] == seed_of_sample(7, 1, 1)
    model = AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32).eval()
    with httpx.Client(base_url=url, timeout=DEADLINE) as client:
        for line in (lines[0], lines[3]):
            sampling = {"temperature": 0} if line["seed"] is None else {"temperature": 1, "seed": line["seed"]}
            for side, steering in (("unsteered", []), ("steered", [{"vector": "cheerful", "scale": 0.6}])):
                body = {"messages": line["messages"], "max_tokens": 24, "steering": steering, **sampling}
                found = client.post("/v1/chat/completions", json=body | {"return_token_ids": True}).json()
                text = found["choices"][0]["message"]["content"]
                assert line[side]["text"] == text
                assert line[side]["scores"]["rule"]["concept"] == float(
                    any(word in CHEERFUL_WORDS for word in text.lower().replace(".", " ").replace(",", " ").split())
                )
                prompt, own = found["prompt_token_ids"], found["choices"][0]["token_ids"]
                with torch.no_grad():
                    scores = model(torch.tensor([prompt + own])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
                expected = -float(scores.gather(1, torch.tensor(own)[:, None]).mean())
                assert line[side]["side_effects"]["nats_per_token"] == pytest.approx(expected, abs=1e-4)
                assert line[side]["side_effects"]["length"] == len(own)
    shown = report["side_effects"]["perplexity"]
    nats = [[line[side]["side_effects"]["nats_per_token"] for line in lines] for side in ("unsteered", "steered")]
    assert [shown["unsteered"], shown["steered"]] == pytest.approx([math.exp(sum(n) / len(n)) for n in nats])


def test_a_judge_rates_and_its_key_is_nowhere(url: str, prompts: Path, judge: ScriptedJudge, tmp_path: Path) -> None:
    judge.at_first = [JSONResponse({}, 429, {"Retry-After": "0"}), JSONResponse({}, 503, {"Retry-After": "0"})]
    asked = ("--judge", judge.url, "--judge-model", "scripted", "--concept", "a cheerful tone")
    report = evaluated(url, prompts, tmp_path / "out", *asked, "--samples", "0", TILLER_JUDGE_KEY=KEY)
    (evidence,) = report["evidence"]
    assert evidence["by"] == "by the judge scripted"
    assert evidence["questions"] == len(judge.bodies) - 1  # it is tried out once
    assert {(body["model"], body["temperature"]) for body in judge.bodies} == {("scripted", 0.0)}
    lines = [json.loads(line) for line in (tmp_path / "out" / "answers.jsonl").read_text().splitlines()]
    for side in ("unsteered", "steered"):
        unrated = sum(line[side]["scores"]["judge"]["fluency"] is None for line in lines)
        assert evidence["unparsable"][side] == {"concept": 0, "instruction": 0, "fluency": unrated}
        assert unrated == sum("sigh" in line[side]["text"] for line in lines)
    assert lines[0]["steered"]["judge_said"]["concept"].startswith("Rating: ")

    once = ("--judge-form", "caa", "--judge-temperature", "unset", "--samples", "0", "--force", "--json")
    report = evaluated(url, prompts, tmp_path / "out", *asked, *once, TILLER_JUDGE_KEY=KEY)
    assert json.loads(report["printed"])["evidence"][0]["form"] == "caa"
    assert "temperature" not in judge.bodies[-1]


def nowhere() -> str:
    """An address at which nothing answers."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        return f"http://127.0.0.1:{closed.getsockname()[1]}"


ASKS_A_JUDGE = ("--judge-model", "x", "--concept", "joy", "--samples", "0", "--max-tokens", "2")


def test_a_judge_that_refuses_ends_the_command_before_anything_is_generated(
    prompts: Path, judge: ScriptedJudge, tmp_path: Path
) -> None:
    """No server answers the prompts, so that whoever asks it first fails otherwise."""
    command = ("evaluate", "cheerful", "--prompts", prompts, "--url", nowhere(), "--output", tmp_path / "out")
    for refusal, said in (
        (None, "(HTTP 401): not valid: Bearer [key]"),
        (JSONResponse({"error": {"message": "no temperature"}}, 400), "try --judge-temperature unset"),
        (JSONResponse({"error": {"message": "x" * 290 + "unknown-key"}}, 403), "x[key]"),
        (JSONResponse({"answer": 1}), "is not a chat completion"),
        (Response(b"x" * ((1 << 20) + 1)), "more than 1 MiB"),
    ):
        judge.always = refusal
        asked = ("--judge", judge.url, *ASKS_A_JUDGE)
        shown = call_tiller(*command, *asked, environ={"TILLER_JUDGE_KEY": "unknown-key", "TILLER_LOG_LEVEL": "error"})
        assert (shown.returncode, shown.stderr.count("\n")) == (1, 1), shown.stderr
        assert said in shown.stderr
        assert "unknown" not in shown.stderr
        assert not (tmp_path / "out").exists()
    shown = call_tiller(*command, "--judge", nowhere(), *ASKS_A_JUDGE, environ={"TILLER_LOG_LEVEL": "error"})
    assert "no judge answers at http://127.0.0.1:" in shown.stderr


def test_a_judge_that_refuses_later_ends_the_command_too(
    url: str, prompts: Path, judge: ScriptedJudge, tmp_path: Path
) -> None:
    judge.at_first = [JSONResponse({"choices": [{"message": {"content": "yes"}}]})]
    judge.always = JSONResponse({"error": {"message": "the quota is used up"}}, 403)
    command = ("evaluate", "cheerful", "--prompts", prompts, "--url", url, "--output", tmp_path / "out")
    shown = call_tiller(*command, "--judge", judge.url, *ASKS_A_JUDGE, environ={"TILLER_LOG_LEVEL": "error"})
    assert (shown.returncode, shown.stderr.count("\n")) == (1, 1), shown.stderr
    assert "refused (HTTP 403): the quota is used up" in shown.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_judge_that_redirects_is_not_followed(
    prompts: Path, judge: ScriptedJudge, status: int, tmp_path: Path
) -> None:
    with ScriptedJudge() as other:
        place = f"{other.url}/v1/chat/completions"
        judge.always = Response(status_code=status, headers={"Location": place})
        command = ("evaluate", "cheerful", "--prompts", prompts, "--url", nowhere(), "--output", tmp_path / "out")
        asked = ("--judge", judge.url, *ASKS_A_JUDGE)
        shown = call_tiller(*command, *asked, environ={"TILLER_JUDGE_KEY": KEY, "TILLER_LOG_LEVEL": "error"})
    assert (shown.returncode, shown.stderr.count("\n")) == (1, 1), shown.stderr
    assert f"redirects (HTTP {status}) to {place}, where no key is sent" in shown.stderr
    assert judge.num_requests > 0
    assert other.num_requests == 0


def test_a_reply_that_echoes_the_key_is_kept_without_it(
    url: str, prompts: Path, judge: ScriptedJudge, tmp_path: Path
) -> None:
    judge.always = JSONResponse({"choices": [{"message": {"content": f"{KEY}\nRating: 1"}}]})
    evaluated(url, prompts, tmp_path / "out", "--judge", judge.url, *ASKS_A_JUDGE, TILLER_JUDGE_KEY=KEY)
    assert "[key]\\nRating: 1" in (tmp_path / "out" / "answers.jsonl").read_text()


def test_a_tiller_server_can_be_the_judge_and_texts_a_classifier(url: str, prompts: Path, tmp_path: Path) -> None:
    """The embedded model cannot rate: every reply is counted as unparsable, and none is guessed."""
    texts = tmp_path / "texts.jsonl"
    rows = [{"positive": f"It is {word}, number {n}.", "negative": f"It is a grim thing, number {n}."}
            for n in range(3) for word in sorted(CHEERFUL_WORDS)]  # fmt: skip
    texts.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    asked = ("--judge", f"{url}/v1", "--judge-model", "tiller-demo", "--concept", "joy", "--judge-form", "caa")
    short = ("--samples", "0", "--max-tokens", "16")
    report = evaluated(url, prompts, tmp_path / "out", "--classifier", texts, *asked, *short)
    classifier, judge = report["evidence"]
    assert classifier["held_out"]["accuracy"] > 0.9
    assert classifier["texts"] == {"name": "texts.jsonl", "with": 81, "without": 81}
    assert "by a classifier with held-out accuracy" in report["reason"]
    assert judge["unparsable"]["steered"]["concept"] == 8
    assert judge["figures"]["concept"] is None
    assert not report["recommended"]


def test_prompts_can_be_continued_as_raw_text(url: str, prompts: Path, tmp_path: Path) -> None:
    report = evaluated(
        url, prompts, tmp_path / "out", "--rule", ".", "--prompt", "raw", "--samples", "0", "--max-tokens", "4"
    )
    line = json.loads((tmp_path / "out" / "answers.jsonl").read_text().splitlines()[0])
    body = {"prompt": line["messages"][0]["content"], "max_tokens": 4, "temperature": 0}
    found = httpx.post(f"{url}/v1/completions", json=body, timeout=DEADLINE).json()
    assert line["unsteered"]["text"] == found["choices"][0]["text"]
    assert report["answers"]["prompt"] == "raw"


def test_what_the_server_refuses_names_the_line_of_the_prompt(url: str, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text(
        json.dumps({"prompt": "word " * 3000}) + '\n{"prompt": "?"}' * 8, encoding="utf-8"
    )
    command = ("--prompts", tmp_path / "p.jsonl", "--rule", "x", "--url", url, "--output", tmp_path / "out")
    shown = call_tiller("evaluate", "cheerful", *command, environ={"TILLER_LOG_LEVEL": "error"})
    assert (shown.returncode, shown.stderr.count("\n")) == (1, 1)
    assert "p.jsonl, line 1: " in shown.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rule", "x"], "expected either DATA (labelled data) or --prompts"),
        (["data.jsonl", "--rule", "x"], "--rule applies to generated answers, with --prompts"),
        (["data.jsonl", "--prompts", "p"], "expected either DATA (labelled data) or --prompts"),
        (["--prompts", "p", "--letters", "paper"], "--letters applies to labelled data"),
        (["--prompts", "p", "--max-loss", "0.1"], "--max-loss applies to labelled data"),
        (["--prompts", "p", "--map", "prompt=x"], "--map applies to labelled data"),
        (["--prompts", "p", "--negative", "n"], "--negative applies to labelled data"),
        (
            ["--prompts", "PROMPTS", "--url", "http://x", "--rule", "x", "--max-items", "7"],
            "--max-items: expected a whole number from 8",
        ),
        (["--prompts", "p", "--rule", "x"], "start tiller serve, and name its address with --url"),
        (["--prompts", "p", "--url", "http://x"], "expected --rule, --words, --classifier or --judge"),
        (["--prompts", "p", "--url", "http://x", "--rule", "x", "--words", "w"], "either --rule or --words, got both"),
        (["--prompts", "p", "--url", "http://x", "--judge", "http://y"], "--judge needs --judge-model"),
        (["--prompts", "p", "--url", "http://x", "--rule", "x", "--concept", "y"], "--concept applies to --judge"),
        (
            ["--prompts", "PROMPTS", "--url", "http://x", "--rule", "("],
            "--rule: expected a regular expression, got '('",
        ),
        (
            ["--prompts", "PROMPTS", "--url", "http://x", "--rule", "x", "--samples", "-1"],
            "--samples: expected a whole",
        ),
        (
            ["--prompts", "PROMPTS", "--url", "http://x", "--rule", "x", "--temperature", "-1"],
            "--temperature: expected",
        ),
        (
            ["--prompts", "PROMPTS", "--url", "http://x", "--judge", "y", "--judge-model", "m", "--concept", "c"],
            "--judge y: expected an http:// or https:// URL",
        ),
    ],
)
def test_usage_errors_are_one_line(arguments: list[str], said: str, prompts: Path, tmp_path: Path) -> None:
    given = [str(prompts) if word == "PROMPTS" else word for word in arguments]
    shown = call_tiller("evaluate", "cheerful", *given, "--output", tmp_path / "out")
    assert (shown.returncode, shown.stdout, shown.stderr.count("\n")) == (2, "", 1), shown.stderr
    assert said in shown.stderr
