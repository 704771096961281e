"""The errors of an engine; `server.api.http.engine_errors` maps them to API errors.

EngineError
├── RequestRefused       the request can never be run
│   ├── EmptyPrompt
│   ├── TokenOutsideVocabulary
│   ├── ContextTooLong
│   ├── InvalidWork
│   └── DuplicateRequest
├── QueueFull            the request may be accepted later
├── EngineStopped        the engine accepts no more requests
└── WorkFailed           the request started but has no result
    ├── OutputNotFinite  the model computed NaN or infinity
    ├── NoTokenAllowed   what the request forbids leaves no token
    ├── GrammarFailed    (`server.engine.grammar`) the constraint cannot be followed any further
    └── StepFailed       an unexpected error, whose details are in the log
"""

from __future__ import annotations


class EngineError(Exception):
    """A request was not accepted, or failed."""


class RequestRefused(EngineError):
    """The engine cannot run the request as it is, now or later."""


class EmptyPrompt(RequestRefused):
    """The prompt has no tokens."""

    def __init__(self) -> None:
        super().__init__("the prompt is empty")


class TokenOutsideVocabulary(RequestRefused):
    """The request names a token id that the model of `vocab_size` tokens does not have."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__(f"expected token ids from 0 to {vocab_size - 1} (the model's vocabulary)")
        self.vocab_size = vocab_size


class ContextTooLong(RequestRefused):
    """`num_known` tokens and `num_to_generate` more do not fit into `limit`."""

    def __init__(self, limit: int, num_known: int, num_to_generate: int) -> None:
        super().__init__(
            f"this model's context is {limit} tokens, but the request needs {num_known + num_to_generate}: "
            f"{num_known} in the prompt and {num_to_generate} to generate"
        )
        self.limit = limit
        self.num_known = num_known
        self.num_to_generate = num_to_generate


class InvalidWork(RequestRefused):
    """The work is invalid, or names a place that the model does not have; the message says which.

    `param`: the field of a generation that is at fault, under its name in the API, or None.
    """

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class DuplicateRequest(RequestRefused):
    """A request with the same id is already running."""

    def __init__(self, request_id: str) -> None:
        super().__init__(f"a request with the id {request_id!r} is already running")


class QueueFull(EngineError):
    """`num_waiting` live requests are waiting, which is the limit."""

    def __init__(self, num_waiting: int) -> None:
        super().__init__(f"the queue is full: {num_waiting} requests are waiting")
        self.num_waiting = num_waiting


class EngineStopped(EngineError):
    """The engine is draining or closed."""

    def __init__(self) -> None:
        super().__init__("the engine accepts no more requests")


class WorkFailed(EngineError):
    """The request failed or was aborted before it had a result."""


class OutputNotFinite(WorkFailed):
    """The model's output has NaN or infinity. `is_steered`: the request's vectors may have caused it."""

    def __init__(self, *, is_steered: bool) -> None:
        super().__init__(
            "the model's output is not finite under this steering; a smaller scale may help"
            if is_steered
            else "the model's output is not finite, although nothing steers it; another --dtype may help"
        )
        self.is_steered = is_steered


class NoTokenAllowed(WorkFailed):
    """The request forbids every token: by its bias, its constraint, or end and stop tokens before `min_tokens`."""

    def __init__(self) -> None:
        super().__init__(
            "no token may come next: the logit bias, the constraint, and the end and stop tokens that min_tokens holds "
            "back leave none"
        )


class StepFailed(WorkFailed):
    """The step that computed this request raised an unexpected error."""

    def __init__(self) -> None:
        super().__init__("the engine failed while it processed this request")
