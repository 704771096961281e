"""What an engine raises; the API says what a client sees of each.

EngineError
├── RequestRefused       the request cannot be run as it is
│   ├── EmptyPrompt
│   ├── TokenOutsideVocabulary
│   ├── ContextTooLong
│   ├── InvalidWork
│   └── DuplicateRequest
├── QueueFull            it could be run later
├── EngineStopped        nothing more will be run
└── WorkFailed           it was begun, and has no result
"""

from __future__ import annotations


class EngineError(Exception):
    """A request was not taken, or came to nothing."""


class RequestRefused(EngineError):
    """The engine cannot run the request as it is, now or later."""


class EmptyPrompt(RequestRefused):
    """There is no token to begin with."""

    def __init__(self) -> None:
        super().__init__("the prompt is empty")


class TokenOutsideVocabulary(RequestRefused):
    """The request names a token id that the model of `vocab_size` tokens does not have."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__(f"a token id is outside the vocabulary of {vocab_size}")
        self.vocab_size = vocab_size


class ContextTooLong(RequestRefused):
    """`num_known` tokens and `num_to_generate` more do not fit into `limit`."""

    def __init__(self, limit: int, num_known: int, num_to_generate: int) -> None:
        super().__init__(
            f"this model's context is {limit} tokens; {num_known} in the prompt and "
            f"{num_to_generate} to generate are {num_known + num_to_generate}"
        )
        self.limit = limit
        self.num_known = num_known
        self.num_to_generate = num_to_generate


class InvalidWork(RequestRefused):
    """What is asked for does not make sense, or names a place that the model lacks; the message says which."""


class DuplicateRequest(RequestRefused):
    """A request with the same id is under way."""

    def __init__(self, request_id: str) -> None:
        super().__init__(f"a request with the id {request_id!r} is under way")


class QueueFull(EngineError):
    """`num_waiting` live requests wait, as many as may."""

    def __init__(self, num_waiting: int) -> None:
        super().__init__(f"{num_waiting} requests are waiting")
        self.num_waiting = num_waiting


class EngineStopped(EngineError):
    """The engine drains or is closed."""

    def __init__(self) -> None:
        super().__init__("the engine takes no more requests")


class WorkFailed(EngineError):
    """The request failed or was aborted before its result was there."""
