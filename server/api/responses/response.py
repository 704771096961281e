"""Builds the response object of one request and its answer, whole or as a stream of events."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Literal

from server.api.generation.choices import usage_of
from server.api.generation.dialogue import Replies
from server.api.generation.objects import ChatFinishReason, InputUsage
from server.api.generation.probes import shown_delta, shown_gates, shown_scores
from server.api.generation.running import Choice
from server.api.generation.steering import applied_steering
from server.api.responses.echo import echo_of
from server.api.responses.events import OutputEvent, ResponseEvent, ResponseEventType, ResponseStreamEvent
from server.api.responses.objects import ResponseFailure, ResponseObject, ResponseStatus
from server.api.responses.output import ResponseOutput
from server.api.responses.wire import ResponseRequest
from server.engine.request import SamplingParams, TokenReadings
from server.errors import ApiError
from server.steering.plan import SteeringPlan

Keep = Callable[[ResponseObject], Awaitable[None]]
"""Stores a finished response object, or does nothing."""


@dataclass
class ResponseInProgress:
    """One response while it is generated. `keep` gets it when it is finished, before the client does."""

    response_id: str
    model: str
    body: ResponseRequest
    plan: SteeringPlan
    sampling: SamplingParams
    replies: Replies
    output: ResponseOutput
    keep: Keep
    _created_at: int = field(default_factory=lambda: int(time.time()))
    _finish_reason: ChatFinishReason | None = None
    _error: ApiError | None = None

    async def whole(self) -> ResponseObject:
        """The finished response."""
        async for _ in self._output_events():
            pass
        return await self._finished()

    async def events(self) -> AsyncIterator[ResponseStreamEvent]:
        """The events of a stream, up to the one with the finished response."""
        with self.replies.generation:
            yield self._event("response.created", self._object())
            yield self._event("response.in_progress", self._object())
            async for event in self._output_events():
                yield event
            response = await self._finished()
            is_complete = response["status"] == "completed"
            yield self._event("response.completed" if is_complete else "response.incomplete", response)

    def failed(self, error: ApiError) -> ResponseEvent:
        """The event that ends a stream after an error."""
        self._error = error
        self.output.break_off()
        return self._event("response.failed", self._object())

    async def _output_events(self) -> AsyncIterator[OutputEvent]:
        unshown: list[TokenReadings] = []
        async for choice, piece in self.replies.pieces():
            unshown.extend(piece.readings)
            for event in self.output.add(piece):
                if unshown and (
                    event["type"] == "response.output_text.delta"
                    or event["type"] == "response.reasoning_text.delta"
                    or event["type"] == "response.function_call_arguments.delta"
                ):
                    event["probes"] = shown_delta(choice, unshown)
                    unshown.clear()
                yield event
            self._finish_reason = piece.finish_reason

    async def _finished(self) -> ResponseObject:
        response = self._object()
        await self.keep(response)
        return response

    def _event(self, kind: ResponseEventType, response: ResponseObject) -> ResponseEvent:
        return {"type": kind, "response": response, "sequence_number": next(self.output.numbers)}

    @property
    def _status(self) -> ResponseStatus:
        if self._error is not None:
            return "failed"
        if self._finish_reason is None:
            return "in_progress"
        return "incomplete" if self._finish_reason == "length" else "completed"

    def _object(self) -> ResponseObject:
        """The response as it is now."""
        status = self._status
        shown: ResponseObject = {
            "id": self.response_id,
            "object": "response",
            "created_at": self._created_at,
            "completed_at": int(time.time()) if status == "completed" else None,
            "status": status,
            "error": None if self._error is None else _failure_of(self._error),
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "model": self.model,
            "output": self.output.items(),
            "temperature": self.sampling.temperature,
            "top_p": self.sampling.top_p,
            "usage": None if self._finish_reason is None else self._usage(),
            "steering": applied_steering(self.plan),
            "probes": shown_scores(self._choice),
            "gates": shown_gates(self._choice),
            **echo_of(self.body),
        }
        if not self.plan.probes:
            del shown["probes"]
        if not self.plan.gated:
            del shown["gates"]
        return shown

    @property
    def _choice(self) -> Choice:
        (choice,) = self.replies.generation.choices
        return choice

    def _usage(self) -> InputUsage:
        usage = usage_of(self.replies.generation.choices)
        num_input = usage["prompt_tokens"]
        num_cached = usage["prompt_tokens_details"]["cached_tokens"]
        return {
            "input_tokens": num_input,
            "input_tokens_details": {"cached_tokens": num_cached, "cache_write_tokens": num_input - num_cached},
            "output_tokens": usage["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": self.replies.num_reasoning_tokens},
            "total_tokens": usage["total_tokens"],
        }


def _failure_of(error: ApiError) -> ResponseFailure:
    """The error of a failed response. Of OpenAI's few codes, these two come nearest: retrying helps or does not."""
    code: Literal["server_error", "invalid_prompt"] = "server_error" if error.status >= 500 else "invalid_prompt"
    return {"code": code, "message": error.message, "param": error.param, "type": error.type}
