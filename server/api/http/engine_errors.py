"""Maps the engine's errors to API errors."""

from __future__ import annotations

from server.engine.errors import (
    ContextTooLong,
    EmptyPrompt,
    EngineError,
    EngineStopped,
    InvalidWork,
    NoTokenAllowed,
    OutputNotFinite,
    QueueFull,
    TokenOutsideVocabulary,
    WorkFailed,
)
from server.engine.grammar import GrammarFailed
from server.errors import (
    ApiError,
    ContextLengthExceeded,
    EngineFailure,
    InvalidRequest,
    Overloaded,
    Unavailable,
    Unprocessable,
)


def from_engine_error(error: EngineError) -> ApiError:
    """The API error for `error`; `EngineFailure` for errors that no client's request can cause."""
    match error:
        case EmptyPrompt():
            return InvalidRequest(str(error), code="empty_prompt", param="prompt")
        case TokenOutsideVocabulary():
            return InvalidRequest(str(error), code="invalid_token", param="prompt")
        case InvalidWork(param=str(param)):
            return InvalidRequest(str(error), code="invalid_value", param=param)
        case ContextTooLong():
            return ContextLengthExceeded(str(error), param="messages")
        case QueueFull():
            return Overloaded(f"{error}; retry later", headers={"Retry-After": "1"})
        case EngineStopped():
            return Unavailable("the server is shutting down", code="shutting_down", headers={"Retry-After": "5"})
        case OutputNotFinite(is_steered=True):
            return Unprocessable(str(error), code="output_not_finite", param="steering")
        case OutputNotFinite():
            return EngineFailure(str(error), code="output_not_finite")
        case NoTokenAllowed():
            return Unprocessable(str(error), code="no_token_allowed")
        case GrammarFailed():
            return Unprocessable(str(error), code="constraint_failed")
        case WorkFailed():
            return EngineFailure("the engine failed while it processed this request")
        case _:
            return EngineFailure("the engine refused the request; the details are in the server's log")
