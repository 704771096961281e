"""Answers under two hundred schemas: every one is valid, at temperature 1, whatever the steering does to the model."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from transformers import AutoTokenizer

from server.demo import MODEL_DIR, VECTORS_DIR
from server.engine.engine import EngineSettings
from server.engine.model import load_model
from tests.server.answers.schemas import Generated, judge, schemas
from tests.server.api.serving import Server, serving
from vectors.formats import decode

STEERING: tuple[list[dict[str, Any]], ...] = (
    [{"vector": "honest"}],
    [{"vector": "cheerful", "scale": -3.0, "positions": "all"}],
    [{"vector": "cheerful", "scale": 40.0}],
    [{"vector": "honest", "scale": -200.0, "positions": "all"}],
    [{"vector": "cheerful", "operation": "ablate", "scale": 1.0, "positions": "all"}],
    [{"vector": "honest", "scale": 30.0, "preserve_norm": True}, {"vector": "cheerful", "operation": "ablate"}],
)
KEYWORDS = (
    "required", "anyOf", "oneOf", "allOf", "enum", "const", "pattern", "format", "minLength", "maxLength", "minimum",
    "exclusiveMaximum", "multipleOf", "minItems", "maxItems", "prefixItems", "additionalProperties",
    "patternProperties", "maxProperties", "$ref", "$defs", "definitions",
)  # fmt: skip
_QUESTIONS = ("Tell me about the weather in Oslo.", "Who are you?", "Give me an answer as JSON.")
_CLOSING = ('"', "}", "]")
_MOST_TOKENS = 900


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server on the embedded model with its two vectors."""
    model = load_model(MODEL_DIR, device="cpu")
    limits = EngineSettings(num_pages=2200, max_running=32, max_batch_tokens=512)
    with serving(
        tmp_path_factory.mktemp("data"),
        model=model,
        tokenizer=AutoTokenizer.from_pretrained(MODEL_DIR),
        engine_settings=limits,
    ) as server:
        for file in VECTORS_DIR.glob("*.safetensors"):
            server.store.put(file.stem, decode(file.read_bytes(), num_layers=6, hidden_size=192))
        yield server


def body_of(server: Server, number: int, made: Generated, steering: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Request `number`: JSON of a schema, at temperature 1 with a seed of its own.

    Where the schema bounds nothing the model, which knows no JSON, is given a liking for what closes.
    """
    closes = [] if made.most_bytes is not None else [server.text.encode(text)[0] for text in _CLOSING]
    return {
        "messages": [{"role": "user", "content": _QUESTIONS[number % len(_QUESTIONS)]}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": made.schema}},
        "logit_bias": {str(token_id): 15.0 for token_id in closes},
        "steering": list(steering),
        "temperature": 1.0,
        "top_p": 1.0,
        "seed": number,
        "max_tokens": _MOST_TOKENS,
    }


def answers_to(server: Server, bodies: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The answers, asked for many at a time."""

    def ask(body: dict[str, Any]) -> dict[str, Any]:
        response = server.http.post("/v1/chat/completions", json=body, timeout=600)
        assert response.status_code == 200, f"{response.text} to {json.dumps(body)}"
        answer: dict[str, Any] = response.json()
        return answer

    with ThreadPoolExecutor(48) as pool:
        return list(pool.map(ask, bodies))


def failures(server: Server, given: Sequence[Generated], steering: Sequence[Sequence[dict[str, Any]]]) -> list[str]:
    """What is wrong with the answers under the schemas; each is asked for with one of `steering` in turn."""
    bodies = [body_of(server, number, made, steering[number % len(steering)]) for number, made in enumerate(given)]
    wrong = []
    for body, made, answer in zip(bodies, given, answers_to(server, bodies), strict=True):
        choice = answer["choices"][0]
        text = choice["message"]["content"]
        assert len(answer["steering"]) == len(body["steering"])
        try:
            assert choice["finish_reason"] == "stop"
            assert made.most_bytes is None or len(text.encode()) <= made.most_bytes
            judge(made.schema, text)
        except Exception as error:
            wrong.append(f"{type(error).__name__} {str(error)[:200]}: {text[:200]} under {json.dumps(body)}")
    return wrong


def test_the_schemas_are_varied_and_the_same_for_everybody() -> None:
    made = schemas()
    assert len({json.dumps(one.schema) for one in made}) == 200
    assert made == schemas()
    text = json.dumps([one.schema for one in made])
    for keyword in KEYWORDS:
        assert text.count(f'"{keyword}"') >= 5, keyword
    assert sum(one.most_bytes is not None for one in made) >= 150


def test_some_answers_are_valid(demo: Server) -> None:
    assert failures(demo, schemas()[:16], [[], STEERING[0], STEERING[3], STEERING[4]]) == []


def test_a_stream_says_what_the_whole_answer_says(demo: Server) -> None:
    """Three choices, steered, with everything that changes sampling; twice, for seeds repeat."""
    made = next(made for made in schemas() if made.schema.get("type") == "object" and made.most_bytes is not None)
    token = demo.text.encode("a")[0]
    body = body_of(demo, 3, made, STEERING[0]) | {"n": 3, "min_tokens": 4, "frequency_penalty": 1.5, "top_p": 0.9}
    body |= {"logit_bias": {str(token): 5.0}, "presence_penalty": 1.0, "repetition_penalty": 1.1}
    once, again = answers_to(demo, [body, body])
    whole = [choice["message"]["content"] for choice in once["choices"]]
    assert whole == [choice["message"]["content"] for choice in again["choices"]]
    texts, reasons = ["", "", ""], ["", "", ""]
    with demo.http.stream("POST", "/v1/chat/completions", json=body | {"stream": True}) as response:
        for line in response.iter_lines():
            for choice in json.loads(line[6:])["choices"] if line.startswith("data: {") else ():
                texts[choice["index"]] += choice["delta"].get("content") or ""
                reasons[choice["index"]] = choice["finish_reason"] or reasons[choice["index"]]
    assert (texts, reasons) == (whole, ["stop"] * 3)
    for text in texts:
        judge(made.schema, text)


@pytest.mark.slow
@pytest.mark.parametrize("steering", [[[]], STEERING], ids=["unsteered", "steered"])
def test_every_answer_is_valid(demo: Server, steering: Sequence[Sequence[dict[str, Any]]]) -> None:
    assert failures(demo, schemas(), steering) == []
