"""Decisions through the official SDK against a real server, compared with plain forward passes."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
from openai.types.decision import Decision
from pydantic import BaseModel

from server.api.generation.scoring import MAX_UNDER_WAY
from server.engine.engine import BatchingEngine, EngineSettings
from server.engine.errors import WorkFailed
from server.engine.request import EngineRequest, FinishReason, Generate, OutputSink, Score, TokenOutput
from tests.reference import Steer, steered_logits
from tests.server.api.serving import LOCAL, Server, byte_tokenizer, direction, eventually, serving, tiny_module

INPUT = "The parcel came late."
PREDICATE = {"type": "predicate", "name": "late", "instructions": "The parcel was late."}
CHOICE: dict[str, Any] = {
    "type": "choice",
    "instructions": "What is it about?",
    "choices": [{"value": "a delivery"}, {"value": "an invoice", "description": "a bill"}, {"value": "neither"}],
}
SCORE = {
    "type": "score",
    "name": "anger",
    "instructions": "How angry is the writer?",
    "levels": [{"label": "calm"}, {"label": "cross"}, {"label": "furious", "description": "shouts"}],
}
QUESTIONS = [PREDICATE, CHOICE, SCORE]
ASKED = [
    ("Is this true? The parcel was late.", ["yes", "no"]),
    ("What is it about?", ["a delivery", "an invoice (a bill)", "neither"]),
    ("How angry is the writer?", ["calm", "cross", "furious (shouts)"]),
]


def decide(server: Server, **options: Any) -> Decision:
    """The decisions on the input, unless `options` say otherwise."""
    return server.sdk.decisions.create(**({"model": "tiny", "input": INPUT, "questions": QUESTIONS} | options))


def probabilities(answer: Any) -> list[float]:
    """Of the options in the order given; of a predicate, of yes and no."""
    if answer.type == "predicate":
        return [answer.probability, 1 - answer.probability]
    return [each.probability for each in answer.probabilities]


def assert_alike(one: Decision, other: Decision) -> None:
    """The same questions have the same probabilities."""
    for left, right in zip(one.answers, other.answers, strict=True):
        assert (left.type, left.name) == (right.type, right.name)
        assert probabilities(left) == pytest.approx(probabilities(right), abs=1e-5)


def reference(
    before: str,
    after: str,
    instructions: str,
    options: Sequence[str],
    labels: Sequence[str] = "ABC",
    kind: str = "letter",
    steers: Sequence[Steer] = (),
) -> list[float]:
    """The probabilities by the words of the documents: a pass for each spelling of each label in both orders."""
    model, tokenizer = tiny_module(), byte_tokenizer()
    totals = [0.0] * len(options)
    for order in (range(len(options)), reversed(range(len(options)))):
        shown = list(order)
        lines = [f"{label}: {options[index]}\n" for label, index in zip(labels, shown, strict=False)]
        text = f"{before}{instructions}\n{''.join(lines)}Respond with a single {kind}.\nAnswer:{after}"
        prompt = tokenizer.encode(text, add_special_tokens=False)
        for label, index in zip(labels, shown, strict=False):
            spelled = torch.stack([_logprob(model, prompt, tokenizer, label, steers) for label in (label, f" {label}")])
            totals[index] += float(spelled.logsumexp(0)) / 2
    return torch.tensor(totals).softmax(0).tolist()


def _logprob(model: Any, prompt: list[int], tokenizer: Any, text: str, steers: Sequence[Steer]) -> torch.Tensor:
    tokens = tokenizer.encode(text, add_special_tokens=False)
    logprobs = steered_logits(model, [*prompt, *tokens], steers, len(prompt)).log_softmax(-1)
    return torch.stack([logprobs[len(prompt) - 1 + index, token] for index, token in enumerate(tokens)]).sum()


def expect(answers: Sequence[Any], before: str, after: str, steers: Sequence[Steer] = ()) -> None:
    """The answers to `QUESTIONS` are the reference's."""
    for answer, (instructions, options) in zip(answers, ASKED, strict=True):
        expected = reference(before, after, instructions, options, steers=steers)
        assert probabilities(answer) == pytest.approx(expected, abs=2e-4)


USER = "<|im_start|>user\n"
END = "<|im_end|>\n"
ASSISTANT = "<|im_start|>assistant\n"


@pytest.mark.parametrize("positions", [None, "response", "all"])
def test_probabilities_are_those_of_plain_passes(server: Server, positions: str | None) -> None:
    steering = [] if positions is None else [{"vector": "calm", "scale": 0.4, "positions": positions}]
    steers = [] if positions is None else [Steer(direction(2), 1, scale=0.4, positions=positions)]
    answer = decide(server, extra_body={"steering": steering})
    expect(answer.answers, f"{USER}{INPUT}\n\n", f"{END}{ASSISTANT}", steers)
    echoed = answer.model_extra["steering"]  # type: ignore[index]  # the SDK keeps what it does not know
    assert [(entry["vector"], entry["positions"]) for entry in echoed] == [("calm", positions)] * len(steers)


def test_a_model_name_steers(server: Server) -> None:
    by_field = decide(server, extra_body={"steering": [{"vector": "calm", "scale": 2}]})
    by_name = decide(server, model="tiny+calm:2")
    assert by_name.model == "tiny+calm:2"
    assert_alike(by_name, by_field)
    plain = decide(server)
    assert probabilities(plain.answers[1]) != pytest.approx(probabilities(by_name.answers[1]), abs=1e-3)


def test_messages_and_tools_are_rendered_as_turns(server: Server) -> None:
    conversation = [
        {"role": "developer", "content": "Be fair."},
        {
            "role": "user",
            "content": [{"type": "input_text", "text": "Late?"}, {"type": "input_json", "data": {"n": 1}}],
        },
        {"type": "function_call", "call_id": "c1", "name": "track", "arguments": '{"n":1}'},
        {"type": "function_call_output", "call_id": "c1", "output": "lost"},
        {"role": "assistant", "content": [{"type": "output_text", "text": "Yes."}], "phase": "final_answer"},
    ]
    before = (
        f'<|im_start|>system\nBe fair.{END}{USER}Late?\n{{"n":1}}{END}{ASSISTANT}Call c1: track({{"n":1}}){END}'
        f"{USER}Output of call c1: lost{END}{ASSISTANT}Yes.{END}{USER}"
    )
    expect(decide(server, input=conversation).answers, before, f"{END}{ASSISTANT}")


def test_turns_of_one_role_in_a_row_are_one(server: Server) -> None:
    messages = [{"role": "user", "content": INPUT, "type": "message"}, {"role": "user", "content": "It is broken."}]
    expect(decide(server, input=messages).answers, f"{USER}{INPUT}\n\nIt is broken.\n\n", f"{END}{ASSISTANT}")


def test_without_a_chat_template_it_is_plain_text(tmp_path: Path) -> None:
    with serving(tmp_path, chat_template=None) as server:
        expect(decide(server).answers, f"{INPUT}\n\n", "")
        spoken = [{"role": "user", "content": "Late?"}, {"role": "assistant", "content": "Yes."}]
        expect(decide(server, input=spoken).answers, "User: Late?\n\nAssistant: Yes.\n\n", "")


def test_more_options_than_letters_have_numbers(server: Server) -> None:
    values = [f"o{index}" for index in range(27)]
    question = {"type": "choice", "instructions": "Which?", "choices": [{"value": value} for value in values]}
    (answer,) = decide(server, input="x", questions=[question]).answers
    labels = [f"{number:02}" for number in range(1, 28)]
    expected = reference(f"{USER}x\n\n", f"{END}{ASSISTANT}", "Which?", values, labels, "number")
    assert probabilities(answer) == pytest.approx(expected, abs=2e-4)


def test_the_order_of_options_changes_nothing(server: Server) -> None:
    turned = CHOICE | {"choices": CHOICE["choices"][::-1]}
    given, reverse = decide(server, questions=[CHOICE, turned]).answers
    assert probabilities(given) == pytest.approx(probabilities(reverse)[::-1], abs=1e-5)


def test_answers_say_what_their_probabilities_say(server: Server) -> None:
    answers: Any = decide(server).answers
    _, choice, score = answers
    likeliest = max(choice.probabilities, key=lambda each: each.probability)
    assert (choice.choice, choice.confidence) == (likeliest.value, likeliest.probability)
    assert [each.value for each in choice.probabilities] == [each["value"] for each in CHOICE["choices"]]
    assert [(each.label, each.value) for each in score.probabilities] == [
        ("calm", 0),
        ("cross", 1),
        ("furious", 2),
    ]
    p = probabilities(score)
    assert (score.score, score.confidence) == (pytest.approx(p[1] + 2 * p[2]), max(p))
    for answer in (choice, score):
        assert sum(probabilities(answer)) == pytest.approx(1)


def assert_typed(value: Any) -> None:
    """Every field of the SDK's type is there, and no other."""
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, BaseModel):
            assert item.model_fields_set == set(type(item).model_fields), item
            for name in item.model_fields_set:
                assert_typed(getattr(item, name))


def test_the_answer_is_what_the_sdk_types(server: Server) -> None:
    mixed = CHOICE | {"choices": [{"value": True}, {"value": "true"}, {"value": False}]}
    body = {"model": "tiny", "input": INPUT, "questions": [*QUESTIONS, mixed]}
    raw = server.http.post("/v1/decisions", json=body).json()
    assert raw.pop("steering") == []
    decision = Decision.model_validate_json(json.dumps(raw), strict=True)
    assert_typed(decision)
    assert [(answer.type, answer.name) for answer in decision.answers] == [
        ("predicate", "late"),
        ("choice", None),
        ("score", "anger"),
        ("choice", None),
    ]
    values = [each.value for each in decision.answers[3].probabilities]  # type: ignore[union-attr]  # a choice
    assert [(type(value), value) for value in values] == [(bool, True), (str, "true"), (bool, False)]


def test_usage_counts_every_prompt_and_what_the_cache_had(server: Server) -> None:
    text = "a text of its own, so that nobody has read it before, and long enough for some pages"
    first, second = (decide(server, input=text, questions=[PREDICATE]).usage for _ in range(2))
    asked = f"{text}\n\nIs this true? The parcel was late.\nA: yes\nB: no\nRespond with a single letter.\nAnswer:"
    prompt = byte_tokenizer().encode(f"{USER}{asked}{END}{ASSISTANT}")
    assert first.input_tokens == second.input_tokens == 4 * len(prompt) + 2  # two orders, and twice a space is forced
    assert first.input_tokens_details.cached_tokens < second.input_tokens_details.cached_tokens
    for usage in (first, second):
        details = usage.input_tokens_details
        assert details.cached_tokens + details.cache_write_tokens == usage.total_tokens == usage.input_tokens
        assert (usage.output_tokens, usage.output_tokens_details.reasoning_tokens) == (0, 0)


def choice_of(*values: Any) -> dict[str, Any]:
    """A question with these options."""
    return {"type": "choice", "instructions": "Which?", "choices": [{"value": value} for value in values]}


IMAGE = {"type": "input_image", "image_url": "data:image/png;base64,AAAA"}


def deep(levels: int) -> dict[str, Any]:
    """An object of so many levels."""
    value: dict[str, Any] = {}
    for _ in range(levels - 1):
        value = {"a": value}
    return value


def json_input(data: Any) -> list[dict[str, Any]]:
    """A user's message of JSON."""
    return [{"role": "user", "content": [{"type": "input_json", "data": data}]}]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": 3}, "input"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input.0"),
        ({"input": [{"role": "user"}]}, "input.0.content"),
        ({"input": [{"role": "user", "content": "x", "mood": 1}]}, "input.0.mood"),
        ({"input": [{"role": "user", "content": [IMAGE]}]}, "input.0.content.0"),
        ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input.0.content.0.text"),
        ({"input": [{"role": "system", "content": [IMAGE]}]}, "input.0.content.0.type"),
        ({"input": [{"type": "function_call", "call_id": "a", "name": "f"}]}, "input.0.arguments"),
        ({"input": [{"type": "function_call_output", "call_id": "a", "output": "x"}]}, "input.0.call_id"),
        ({"input": json_input([1])}, "input.0.content.0.data"),
        ({"input": json_input(deep(33))}, "input.0.content.0.data"),
        ({"input": json_input({"a": [0] * 10_001})}, "input.0.content.0.data"),
        ({"input": json_input({"a": "x" * (256 << 10)})}, "input.0.content.0.data"),
        ({"input": "forbidden word " * 40}, "input"),
        ({"questions": []}, "questions"),
        ({"questions": [PREDICATE] * 401}, "questions"),
        ({"questions": [PREDICATE | {"type": "guess"}]}, "questions.0"),
        ({"questions": [PREDICATE | {"levels": []}]}, "questions.0.levels"),
        ({"questions": [PREDICATE | {"instructions": [IMAGE]}]}, "questions.0.instructions.0"),
        ({"questions": [PREDICATE | {"instructions": " "}]}, "questions.0.instructions"),
        ({"questions": [choice_of("a")]}, "questions.0.choices"),
        ({"questions": [choice_of(*map(str, range(256)))]}, "questions.0.choices"),
        ({"questions": [PREDICATE, choice_of("a", "b", "a")]}, "questions.1.choices.2.value"),
        ({"questions": [choice_of("a", 1)]}, "questions.0.choices.1.value"),
        ({"questions": [SCORE | {"levels": [{"label": "a"}]}]}, "questions.0.levels"),
        ({"steering": [{"vector": "nobody"}]}, "steering.0.vector"),
        ({"temperature": 1}, "temperature"),
        ({"prompt_cache_options": {"mode": "never"}}, "prompt_cache_options.mode"),
        ({"chat_template_kwargs": {"tokenize": True}}, "chat_template_kwargs.tokenize"),
    ],
)
def test_refusals_name_the_field(server: Server, fields: dict[str, Any], param: str) -> None:
    response = server.http.post("/v1/decisions", json={"input": INPUT, "questions": [PREDICATE]} | fields)
    error = response.json()["error"]
    assert (response.status_code in (400, 404), error["type"]) == (True, "invalid_request_error"), error
    assert error["param"] == param, error


def test_what_the_sdk_can_send_besides_is_accepted(server: Server) -> None:
    marked = [{"type": "input_text", "text": INPUT, "prompt_cache_breakpoint": {"mode": "explicit"}}]
    answer = decide(
        server,
        input=[{"role": "user", "content": marked}],
        prompt_cache_key="k",
        prompt_cache_options={"mode": "implicit"},
        safety_identifier="me",
    )
    assert_alike(answer, decide(server))
    assert decide(server, input=json_input(deep(32)), questions=[PREDICATE]).answers


class CountingEngine(BatchingEngine):
    """Counts the scoring requests that are under way together."""

    num_under_way = 0
    most_under_way = 0

    def submit(self, request: EngineRequest, sink: OutputSink) -> None:
        """See `protocol.Engine.submit`."""

        def counting(output: TokenOutput) -> None:
            if output.finish_reason is not None:
                self.num_under_way -= 1
            sink(output)

        super().submit(request, counting if isinstance(request.work, Score) else sink)
        if isinstance(request.work, Score):
            self.num_under_way += 1
            self.most_under_way = max(self.most_under_way, self.num_under_way)


def numbered(count: int) -> list[dict[str, Any]]:
    """So many different questions."""
    return [PREDICATE | {"name": str(index), "instructions": f"It took {index} days."} for index in range(count)]


def test_many_questions_leave_room_for_others(tmp_path: Path) -> None:
    with serving(tmp_path, engine_class=CountingEngine) as server:
        answers: list[Decision] = []
        asking = threading.Thread(target=lambda: answers.append(decide(server, questions=numbered(60))))
        asking.start()
        eventually(lambda: server.engine.stats().num_running > 0)
        assert list(server.sdk.completions.create(model="tiny", prompt="hi", max_tokens=4, stream=True))
        was_busy = asking.is_alive()
        asking.join()
        assert was_busy
        assert [answer.name for answer in answers[0].answers] == [str(index) for index in range(60)]
        assert isinstance(server.engine, CountingEngine)
        assert 16 < server.engine.most_under_way <= MAX_UNDER_WAY
        eventually(server.is_idle)


class HeldCountingEngine(CountingEngine):
    """Counts, and does not begin by itself."""

    def start(self) -> HeldCountingEngine:
        """Nothing yet; `BatchingEngine.start` begins."""
        return self


def test_a_queue_that_fills_up_meanwhile_is_waited_for(tmp_path: Path) -> None:
    limits = EngineSettings(num_pages=400, page_size=8, max_running=2, max_batch_tokens=64, max_queue=3)
    with serving(tmp_path, engine_settings=limits, engine_class=HeldCountingEngine) as server:
        engine = server.engine
        assert isinstance(engine, HeldCountingEngine)
        for name in ("first", "second"):
            engine.submit(EngineRequest(name, (5, 6), Generate(3)), lambda output: None)
        answers: list[Decision] = []
        asking = threading.Thread(target=lambda: answers.append(decide(server)))
        asking.start()
        eventually(lambda: engine.num_under_way == 3)
        BatchingEngine.start(engine)
        asking.join()
        assert len(answers[0].answers) == 3


@pytest.mark.slow
def test_four_hundred_questions_of_every_size(server: Server) -> None:
    questions = [*numbered(399), choice_of(*(f"{index:x}" for index in range(50)))]
    assert len(decide(server, input="x", questions=questions).answers) == 400


class HeldEngine(BatchingEngine):
    """Does not begin by itself, so that a test knows what waits."""

    def start(self) -> HeldEngine:
        """Nothing yet; `BatchingEngine.start` begins."""
        return self


def test_a_full_queue_is_429_and_a_draining_server_503(tmp_path: Path) -> None:
    limits = EngineSettings(num_pages=400, page_size=8, max_running=2, max_batch_tokens=64, max_queue=1)
    with serving(tmp_path, engine_settings=limits, engine_class=HeldEngine) as server:
        for name in ("first", "second", "third"):
            server.engine.submit(EngineRequest(name, (5, 6), Generate(3), owner=LOCAL), lambda output: None)
        with pytest.raises(openai.RateLimitError) as full:
            decide(server)
        assert (full.value.code, full.value.response.headers["retry-after"]) == ("queue_full", "1")
        BatchingEngine.start(server.engine)
        eventually(server.is_idle)
        server.engine.drain(0)
        with pytest.raises(openai.InternalServerError) as draining:
            decide(server)
        assert (draining.value.status_code, draining.value.code) == (503, "shutting_down")


class AbortedEngine(HeldEngine):
    """Counts what is aborted before it begins."""

    num_aborted = 0

    def abort(self, request_id: str) -> None:
        """See `protocol.Engine.abort`."""
        super().abort(request_id)
        self.num_aborted += 1


def test_leaving_aborts_what_is_under_way(tmp_path: Path) -> None:
    with serving(tmp_path, engine_class=AbortedEngine) as server:
        body = {"input": INPUT, "questions": numbered(100)}
        with pytest.raises(httpx.ReadTimeout):
            server.http.post("/v1/decisions", json=body, timeout=0.5)
        engine = server.engine
        assert isinstance(engine, AbortedEngine)
        eventually(lambda: engine.num_aborted > 0)
        BatchingEngine.start(engine)
        eventually(lambda: engine.stats().total_requests > 0)
        eventually(server.is_idle)
        assert engine.num_aborted == engine.stats().total_requests == MAX_UNDER_WAY
        assert engine.stats().total_prompt_tokens == 0


class FailingEngine(BatchingEngine):
    """Fails every scoring."""

    def submit(self, request: EngineRequest, sink: OutputSink) -> None:
        """See `protocol.Engine.submit`."""

        def failing(output: TokenOutput) -> None:
            sink(
                TokenOutput(
                    request.request_id, finish_reason=FinishReason.ERROR, error=WorkFailed("secret of the house")
                )
            )

        super().submit(request, failing)


def test_a_failure_is_a_500_without_details(tmp_path: Path) -> None:
    with serving(tmp_path, engine_class=FailingEngine) as server:
        response = server.http.post("/v1/decisions", json={"input": INPUT, "questions": QUESTIONS})
    assert (response.status_code, response.json()["error"]["code"]) == (500, "engine_failure")
    assert "secret" not in response.text


def test_the_async_client_gets_the_same(server: Server) -> None:
    async def ask() -> Decision:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            return await client.decisions.create(model="tiny", input=INPUT, questions=QUESTIONS)  # type: ignore[arg-type]

    assert_alike(asyncio.run(ask()), decide(server))
