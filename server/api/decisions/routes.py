"""`POST /v1/decisions`: gives the probabilities of the answers to questions about an input."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from server.api.decisions.multiple_choice import Interview, Question, probabilities_of
from server.api.decisions.objects import ChoiceAnswer, Decision, PredicateAnswer, ScoreAnswer
from server.api.decisions.wire import AskedQuestion, Choice, DecisionRequest, Predicate
from server.api.generation.objects import InputUsage
from server.api.generation.scoring import Scoring
from server.api.generation.steering import applied_steering, plan_of
from server.api.http.auth import require
from server.api.http.bodies import MAX_JSON_BYTES, read_model
from server.api.http.connection import while_connected
from server.api.http.description import GENERATION_ERRORS, JSON, Success, describe
from server.api.http.engine_errors import from_engine_error
from server.api.http.json_response import json_response
from server.api.http.limiting import Caller, caller_of
from server.api.http.parameters import RATE_LIMITS
from server.api.http.services import Services, services_of
from server.engine.errors import OutputNotFinite
from server.engine.queries import share_heads
from server.engine.request import EngineRequest, TokenOutput
from server.errors import ContextLengthExceeded
from server.keys import Role
from server.steering.plan import SteeringPlan

router = APIRouter(dependencies=[Depends(require(Role.USE))], tags=["Generation"])

Probabilities = npt.NDArray[np.float64]


@router.post("/v1/decisions")
@describe(
    Success(Decision, "The answers, in the order of the questions.", headers=RATE_LIMITS),
    bodies={JSON: DecisionRequest},
    errors=GENERATION_ERRORS,
)
async def create_decision(request: Request) -> Response:
    """Create a decision: the probabilities of answers to questions about an input."""
    services = services_of(request)
    services.check_accepting()
    body = await read_model(request, DecisionRequest, MAX_JSON_BYTES)
    caller = caller_of(request)
    plan = await plan_of(body, services, caller)
    decision = await while_connected(request.receive, _decide(body, services, plan, caller))
    return json_response(decision)


async def _decide(body: DecisionRequest, services: Services, plan: SteeringPlan, caller: Caller) -> Decision:
    """The `Decision` object, and the steering that was applied."""
    max_model_len = services.engine.info.max_model_len
    interview = await run_sync(lambda: Interview(services.text, body.turns(), max_model_len, body.chat_template_kwargs))
    asking = _Asking(interview, plan, max_model_len)
    questions = [asked.question() for asked in body.questions]
    with Scoring(services.engine, caller) as scoring:
        outputs = await scoring.outputs(asking.requests(questions))
    found = asking.probabilities(questions, outputs)
    return {
        "model": body.model if body.model is not None else services.engine.info.model_id,
        "answers": [_answer(asked, each) for asked, each in zip(body.questions, found, strict=True)],
        "usage": asking.usage(outputs),
        "steering": applied_steering(plan),
    }


@dataclass
class _Asking:
    """All questions of a request while the engine scores them: the requests sent, and what each is for."""

    interview: Interview
    plan: SteeringPlan
    max_model_len: int
    _sent: list[tuple[int, int, list[tuple[int, int]]]] = field(default_factory=list)
    _num_tokens: int = 0

    def requests(self, questions: Sequence[Question]) -> Iterator[EngineRequest]:
        """The scoring requests of every question in both orders, made one at a time.

        Raises `ContextLengthExceeded`.
        """
        for number, question in enumerate(questions):
            labels = self.interview.label_tokens(len(question.options))
            places = [(place, index) for place, spelled in enumerate(labels) for index in range(len(spelled))]
            spellings = [tokens for spelled in labels for tokens in spelled]
            for turn, order in enumerate(question.orders):
                prompt = self.interview.prompt(question, order)
                self._check_length(number, len(prompt) + max(map(len, spellings)))
                for work, indices in share_heads(spellings):
                    self._sent.append((number, turn, [places[index] for index in indices]))
                    self._num_tokens += len(prompt) + len(work.head)
                    yield EngineRequest(f"decision-{uuid.uuid4().hex}", tuple(prompt), work, self.plan)

    def probabilities(self, questions: Sequence[Question], outputs: Sequence[TokenOutput]) -> list[Probabilities]:
        """The probabilities of each question's options, from the outputs of all `requests`."""
        logprobs = [
            [[[0.0] * len(spelled) for spelled in self.interview.label_tokens(len(question.options))] for _ in range(2)]
            for question in questions
        ]
        for (number, turn, places), output in zip(self._sent, outputs, strict=True):
            for (place, index), tokens in zip(places, output.scores or (), strict=True):
                logprobs[number][turn][place][index] = sum(tokens)
        found = [probabilities_of(orders) for orders in logprobs]
        if not all(np.isfinite(each).all() for each in found):
            raise from_engine_error(OutputNotFinite(is_steered=self.plan.is_steered))
        return found

    def usage(self, outputs: Sequence[TokenOutput]) -> InputUsage:
        """The tokens of every question's prompts, and how many of them the prefix cache had."""
        num_cached = sum(output.num_cached_tokens for output in outputs)
        return {
            "input_tokens": self._num_tokens,
            "input_tokens_details": {"cached_tokens": num_cached, "cache_write_tokens": self._num_tokens - num_cached},
            "output_tokens": 0,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": self._num_tokens,
        }

    def _check_length(self, number: int, num_tokens: int) -> None:
        if num_tokens > self.max_model_len:
            raise ContextLengthExceeded(
                f"this model's context is {self.max_model_len} tokens, "
                f"but the input with question {number} and its answer needs {num_tokens}",
                param="input",
            )


def _answer(asked: AskedQuestion, probabilities: Probabilities) -> PredicateAnswer | ChoiceAnswer | ScoreAnswer:
    """The answer to one question, as the SDK types it."""
    values = [float(probability) for probability in probabilities]
    if isinstance(asked, Predicate):
        return {"type": "predicate", "name": asked.name, "probability": values[0]}
    best = int(probabilities.argmax())
    if isinstance(asked, Choice):
        return {
            "type": "choice",
            "name": asked.name,
            "choice": asked.choices[best].value,
            "confidence": values[best],
            "probabilities": [
                {"value": option.value, "probability": value}
                for option, value in zip(asked.choices, values, strict=True)
            ],
        }
    return {
        "type": "score",
        "name": asked.name,
        "score": sum(level * value for level, value in enumerate(values)),
        "confidence": values[best],
        "probabilities": [
            {"label": level.label, "value": index, "probability": value}
            for index, (level, value) in enumerate(zip(asked.levels, values, strict=True))
        ],
    }
