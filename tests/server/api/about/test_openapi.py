"""The OpenAPI document: it is valid, it is about the routes that there are, and what it says is so."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import jsonschema
import pytest
import torch
from fastapi.openapi.utils import get_openapi
from openapi_spec_validator import validate
from pydantic import BaseModel
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from server.api.about.examples import Example, all_examples
from server.api.about.tokens import TokenizeRequest
from server.api.chat.wire import ChatRequest
from server.api.completions.wire import CompletionRequest
from server.api.decisions.wire import DecisionRequest
from server.api.responses.wire import ResponseRequest
from server.api.training import objects as training
from server.api.training.wire import CreateJobRequest
from server.demo import MODEL_DIR, MODEL_NAME, VECTORS_DIR
from server.demo.documents import CHAT_TEMPLATE
from server.engine.engine import EngineSettings
from server.engine.model import load_model, prepare_model
from server.errors import ApiError
from server.jobs.records import JobRecord, JobStatus
from server.jobs.trainer import Outcome
from server.keys import ApiKeys
from tests.server.api.about.exchanges import replayed
from tests.server.api.serving import Server, eventually, serving, vector
from tests.server.jobs.trainers import PairTrainer
from vectors.formats import decode

MIN_CASES = 5000
HELLO = [{"role": "user", "content": "hi"}]
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}


@pytest.fixture(scope="module")
def document(server: Server) -> dict[str, Any]:
    found: dict[str, Any] = server.http.get("/openapi.json").json()
    return found


def operations(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """All operations by their ids."""
    return {each["operationId"]: each for methods in document["paths"].values() for each in methods.values()}


def check(document: dict[str, Any], schema: dict[str, Any], value: object) -> None:
    """Raise unless `value` is as `schema` says, references and all."""
    jsonschema.Draft202012Validator({**schema, "components": document["components"]}).validate(value)


def is_valid(document: dict[str, Any], schema: dict[str, Any], value: object) -> bool:
    return bool(jsonschema.Draft202012Validator({**schema, "components": document["components"]}).is_valid(value))


def events_of(text: str) -> list[dict[str, str]]:
    """The events of a stream, as they are on the wire."""
    return [
        dict(line.split(": ", 1) for line in block.splitlines())
        for block in text.strip().split("\n\n")
        if not block.startswith(":")
    ]


def check_answer(document: dict[str, Any], example: Example, answer: object) -> None:
    """Raise unless the document allows the answer, every event of a stream included."""
    declared = operations(document)[example.operation]["responses"][str(example.status)]["content"]
    schema = declared[example.answer_media_type].get("schema", {})
    if example.answer_media_type != "text/event-stream":
        check(document, schema, answer)
        return
    done, data = schema["properties"]["data"]["anyOf"]
    events = events_of(str(answer))
    assert len(events) > 2
    for number, event in enumerate(events):
        check(document, schema, event)
        if number < len(events) - 1 or event["data"] != done["const"]:
            check(document, data["contentSchema"], json.loads(event["data"]))


def test_the_document_is_valid_openapi(document: dict[str, Any]) -> None:
    validate(document)
    assert document["openapi"].startswith("3.1")
    for name, operation in operations(document).items():
        assert operation["summary"], name
        assert not re.search("__", "".join(document["components"]["schemas"]))


def test_it_is_about_the_routes_that_there_are(server: Server, document: dict[str, Any]) -> None:
    assert server.app is not None
    found = get_openapi(title="", version="", routes=server.app.routes)["paths"]
    assert {(path, method) for path in found for method in found[path]} == {
        (path, method) for path in document["paths"] for method in document["paths"][path]
    }


def test_objects_have_no_fields_that_the_document_does_not_name(document: dict[str, Any]) -> None:
    objects = {name: each for name, each in document["components"]["schemas"].items() if "properties" in each}
    assert {"ChatCompletion", "ResponseObject", "Vector", "Job", "ErrorDetails", "ChatRequest"} < set(objects)
    assert not {name for name, each in objects.items() if each.get("additionalProperties") is not False}


def test_questions_keep_the_names_that_generated_clients_have_for_them(document: dict[str, Any]) -> None:
    questions = document["components"]["schemas"]["DecisionRequest"]["properties"]["questions"]["items"]
    assert questions["discriminator"]["mapping"] == {
        kind: f"#/components/schemas/{name}"
        for kind, name in (("predicate", "Predicate"), ("choice", "Choice"), ("score", "Score"))
    }


def test_every_operation_has_an_example(document: dict[str, Any]) -> None:
    told = {example.operation for example in all_examples()} | {"get_openapi", "get_docs"}
    assert told == set(operations(document))


@pytest.mark.parametrize("example", all_examples(), ids=lambda example: f"{example.operation}-{example.name}")
def test_recorded_answers_are_what_the_document_says(document: dict[str, Any], example: Example) -> None:
    if example.answer is not None:
        check_answer(document, example, example.answer)
    if example.media_type == "application/json":
        body = operations(document)[example.operation]["requestBody"]["content"]["application/json"]
        check(document, body["schema"], example.body)


class LastingTrainer(PairTrainer):
    """A job with many splits lasts until it is cancelled."""

    def run(self, job: JobRecord, *arguments: Any) -> Outcome:
        if job.steering.get("seeds") == 100:
            eventually(arguments[-1], within=60)
        return super().run(job, *arguments)


def put_embedded_vectors(server: Server) -> None:
    """Give the server the vectors that the examples name."""
    for file in VECTORS_DIR.glob("*.safetensors"):
        server.store.put(file.stem, decode(file.read_bytes(), num_layers=6, hidden_size=192))


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The embedded model and its vectors."""
    model = load_model(MODEL_DIR, device="cpu", dtype="float32", model_id=MODEL_NAME)
    folder = tmp_path_factory.mktemp("data")
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    with serving(folder, model=model, tokenizer=tokenizer, trainer=LastingTrainer()) as running:
        put_embedded_vectors(running)
        yield running


def test_examples_can_be_made_again(demo: Server, document: dict[str, Any]) -> None:
    for example, answer in replayed(demo.http, all_examples()):
        what = f"{example.operation} {example.name}: {answer.text[:300]}"
        assert answer.status_code == example.status, what
        assert answer.headers["content-type"].partition(";")[0] == example.answer_media_type, what
        if example.answer_media_type == "application/json":
            check_answer(document, example, answer.json())
            assert set(answer.json()) == set(example.answer), what
        elif example.answer_media_type == "text/event-stream":
            check_answer(document, example, answer.text)
        declared = operations(document)[example.operation]["responses"][str(example.status)]["headers"]
        for name, header in declared.items():
            assert name in answer.headers or not header["required"], what


ACCEPTED: list[tuple[type[BaseModel], dict[str, Any]]] = [
    (CompletionRequest, {"prompt": [1, 2]}),
    (CompletionRequest, {"prompt": ["a", [1, 2]], "stop": ["x"], "logit_bias": {"7": -100}, "suffix": None}),
    (CompletionRequest, {"prompt": "a", "stop": "x", "steering": [{"vector": "v", "layers": "1-2, 5"}]}),
    (CompletionRequest, {"prompt": "a", "steering": [{"vector": "v", "layers": [0, 2], "parts": ["content"]}]}),
    (ChatRequest, {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}], "store": False}),
    (ChatRequest, {"messages": [*HELLO, {"role": "assistant", "tool_calls": [CALL]}], "functions": []}),
    (ChatRequest, {"messages": HELLO, "tool_choice": "none", "response_format": {"type": "json_object"}}),
    (ResponseRequest, {"input": [{"role": "user", "content": [{"type": "input_text", "text": "a"}]}], "n": 1}),
    (ResponseRequest, {"input": "a", "include": ["message.output_text.logprobs"], "truncation": "disabled"}),
    (DecisionRequest, {"input": "a", "questions": [{"type": "predicate", "instructions": "b"}]}),
    (TokenizeRequest, {"prompt": "a", "chat_template": None}),
    (CreateJobRequest, {"model": "m", "training_file": "f", "method": {"type": "steering", "steering": {"icl": 2}}}),
]
REFUSED: list[tuple[type[BaseModel], dict[str, Any]]] = [
    (CompletionRequest, {"prompt": []}),
    (CompletionRequest, {"prompt": [1, "a"]}),
    (CompletionRequest, {"prompt": "a", "stop": [""]}),
    (CompletionRequest, {"prompt": "a", "stop": ["x"] * 17}),
    (CompletionRequest, {"prompt": "a", "logit_bias": {"a": 1}}),
    (CompletionRequest, {"prompt": "a", "logit_bias": {"7": 101}}),
    (CompletionRequest, {"prompt": "a", "suffix": "b"}),
    (CompletionRequest, {"prompt": "a", "temperature": "0"}),
    (CompletionRequest, {"prompt": "a", "unknown": 1}),
    (CompletionRequest, {"prompt": "a", "steering": [{"vector": "v", "layers": [1.5]}]}),
    (ChatRequest, {"messages": []}),
    (ChatRequest, {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "a"}}]}]}),
    (ChatRequest, {"messages": HELLO, "store": True}),
    (ChatRequest, {"messages": HELLO, "tool_choice": "any"}),
    (ResponseRequest, {"input": []}),
    (ResponseRequest, {"input": "a", "include": ["file_search_call.results"]}),
    (ResponseRequest, {"input": "a", "n": 2}),
    (DecisionRequest, {"input": [{"role": "user", "content": [{"type": "input_image"}]}], "questions": []}),
    (DecisionRequest, {"input": "a", "questions": [{"type": "predicate", "instructions": " "}]}),
    (TokenizeRequest, {"prompt": "a", "messages": HELLO}),
    (TokenizeRequest, {}),
    (CreateJobRequest, {"model": "m", "training_file": "f", "method": {"type": "dpo"}}),
]


@pytest.mark.parametrize(("model", "body"), ACCEPTED, ids=str)
def test_what_is_accepted_is_in_the_schema(document: dict[str, Any], model: type[BaseModel], body: Any) -> None:
    model.model_validate(body)
    check(document, {"$ref": f"#/components/schemas/{model.__name__}"}, body)


@pytest.mark.parametrize(("model", "body"), REFUSED, ids=str)
def test_what_is_not_in_the_schema_is_refused(document: dict[str, Any], model: type[BaseModel], body: Any) -> None:
    with pytest.raises((ValueError, ApiError)):
        model.model_validate(body)
    assert not is_valid(document, {"$ref": f"#/components/schemas/{model.__name__}"}, body)


def test_errors_and_lists_say_all_that_there_is(document: dict[str, Any]) -> None:
    assert set(get_args(training.Status)) == {status.label for status in JobStatus}
    chat = operations(document)["create_chat_completion"]["responses"]
    assert {"400", "401", "403", "404", "408", "413", "429", "500", "503", "504"} < set(chat)
    assert chat["429"]["headers"]["retry-after"]["required"]


def test_the_page_needs_nothing_from_elsewhere(server: Server) -> None:
    answer = server.http.get("/docs")
    assert answer.status_code == 200
    assert "://" not in answer.text
    policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
    (script,) = re.findall("<script>(.*?)</script>", answer.text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy["script-src"] == f"'sha256-{digest}'"
    assert (policy["default-src"], policy["connect-src"]) == ("'none'", "'self'")


def test_document_and_page_need_no_key_and_tell_nothing_of_what_is_served(tmp_path: Path) -> None:
    with serving(tmp_path, keys=ApiKeys(use=["secret-key"])) as server:
        server.store.put("confidential", vector(1))
        for path in ("/openapi.json", "/docs"):
            answer = server.http.get(path)
            assert answer.status_code == 200
            assert "secret-key" not in answer.text
            assert "confidential" not in answer.text


def test_a_path_tells_all_its_methods(server: Server) -> None:
    refused = server.http.request("OPTIONS", "/v1/steering/vectors/calm")
    assert refused.status_code == 405
    assert set(refused.headers["allow"].split(", ")) == {"GET", "PUT", "PATCH", "DELETE"}


@pytest.fixture(scope="module")
def terse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """In the embedded model's place, so that the examples fit, one that ends most of its answers at once.

    With training, keys and the embedded vectors; few requests run at a time, so that a hundred answers are refused.
    """
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=259, hidden_size=192, intermediate_size=48, num_hidden_layers=6, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.1, bos_token_id=None, eos_token_id=2,
    )  # fmt: skip
    module = LlamaForCausalLM(config)
    module.eval()
    with torch.no_grad():
        module.lm_head.weight[2] *= 8  # the end is either very likely or very unlikely
    with serving(
        tmp_path_factory.mktemp("data"),
        chat_template=CHAT_TEMPLATE,
        model=prepare_model(module, model_id=MODEL_NAME),
        engine_settings=EngineSettings(num_pages=300, page_size=8, max_running=8, max_queue=8, max_batch_tokens=512),
        trainer=PairTrainer(),
        keys=ApiKeys(use=["use"], manage=["manage"]),
        key="manage",
        max_upload_mib=0.25,
    ) as running:
        put_embedded_vectors(running)
        yield running


def num_responses(server: Server, kind: str) -> int:
    """How many responses of a kind (`2xx`) the server counts."""
    found = re.search(rf'tiller:http_responses_total{{status="{kind}"}} (\S+)', server.http.get("/metrics").text)
    return int(float(found[1])) if found is not None else 0


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_whatever_is_sent_the_document_says_what_comes_back(terse: Server, tmp_path: Path) -> None:
    settings = Path(__file__).with_name("schemathesis.toml")
    command = [str(Path(sys.executable).with_name("schemathesis")), "--config-file", str(settings), "run"]
    command += [f"{terse.url}/openapi.json", "--header", "Authorization: Bearer manage"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(r"(\d+) generated, (\d+) passed", done.stdout)
    assert found is not None, done.stdout[-2000:]
    assert int(found[1]) >= MIN_CASES
    assert num_responses(terse, "5xx") == 0
    assert min(num_responses(terse, "2xx"), num_responses(terse, "4xx")) > 500
    eventually(terse.is_idle)
