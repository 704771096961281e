"""The errors that a client may see, and the table that maps the errors of `vectors` to them.

    ApiError                        status  type                    code
    ├── InvalidRequest              400     invalid_request_error   given by the raiser
    │   └── ContextLengthExceeded   400     invalid_request_error   context_length_exceeded
    ├── Unauthorized                401     authentication_error    invalid_api_key
    ├── Forbidden                   403     permission_error        insufficient_permissions
    ├── NotFound                    404     invalid_request_error   given by the raiser
    ├── BodyTooSlow                 408     invalid_request_error   request_timeout
    ├── Conflict                    409     invalid_request_error   given by the raiser
    ├── PreconditionFailed          412     invalid_request_error   precondition_failed
    ├── PayloadTooLarge             413     invalid_request_error   payload_too_large
    ├── Unprocessable               422     invalid_request_error   given by the raiser
    ├── Overloaded                  429     rate_limit_error        queue_full
    ├── RateLimited                 429     rate_limit_error        rate_limit_exceeded
    ├── EngineFailure               500     server_error            engine_failure
    ├── Unavailable                 503     server_error            given by the raiser
    ├── TimedOut                    504     server_error            request_timeout
    └── InsufficientStorage         507     server_error            disk_full

`server.api.http.failures` turns them into responses.
"""

from __future__ import annotations

from typing import ClassVar

from vectors.errors import (
    InvalidData,
    InvalidLayers,
    InvalidMethod,
    InvalidRevision,
    InvalidVector,
    InvalidVectorName,
    MissingDependency,
    RevisionMismatch,
    RevisionNotFound,
    StorageFailed,
    StorageFull,
    StorageGone,
    StoreCorrupt,
    VectorExists,
    VectorNotFound,
    VectorsError,
    VectorTooLarge,
)


class ApiError(Exception):
    """An error with an HTTP status and OpenAI's envelope fields.

    `message` is for people, `code` is for programs, and `param` is the dotted path of the offending field or None.
    `headers` are added to the HTTP response.
    """

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    default_code: ClassVar[str | None] = None

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code if code is not None else self.default_code
        self.param = param
        self.headers = headers or {}


class InvalidRequest(ApiError):
    """The request is malformed, a value is out of range, or the server does not support what it asks for."""

    status = 400
    type = "invalid_request_error"


class ContextLengthExceeded(InvalidRequest):
    """The prompt and the requested tokens do not fit into the model's context."""

    default_code = "context_length_exceeded"


class Unauthorized(ApiError):
    """The API key is missing or unknown."""

    status = 401
    type = "authentication_error"
    default_code = "invalid_api_key"


class Forbidden(ApiError):
    """The key's role does not allow the call, or a page of another origin called a server without API keys."""

    status = 403
    type = "permission_error"
    default_code = "insufficient_permissions"


class NotFound(ApiError):
    """The requested object does not exist."""

    status = 404
    type = "invalid_request_error"


class BodyTooSlow(ApiError):
    """The request body did not arrive in time."""

    status = 408
    type = "invalid_request_error"
    default_code = "request_timeout"


class Conflict(ApiError):
    """The object already exists, or its state does not allow the call."""

    status = 409
    type = "invalid_request_error"


class PreconditionFailed(ApiError):
    """`If-Match` or `If-None-Match` does not hold."""

    status = 412
    type = "invalid_request_error"
    default_code = "precondition_failed"


class PayloadTooLarge(ApiError):
    """The request body is larger than the server accepts."""

    status = 413
    type = "invalid_request_error"
    default_code = "payload_too_large"


class Unprocessable(ApiError):
    """The request is valid, but the model has no answer to it: its steering is too strong, or its constraint failed."""

    status = 422
    type = "invalid_request_error"


class Overloaded(ApiError):
    """The queue is full; `Retry-After` says when to retry."""

    status = 429
    type = "rate_limit_error"
    default_code = "queue_full"


class RateLimited(ApiError):
    """The caller exceeded its rate limit; `Retry-After` says when to retry."""

    status = 429
    type = "rate_limit_error"
    default_code = "rate_limit_exceeded"


class EngineFailure(ApiError):
    """The engine failed while it processed the request; the details are in the server's log."""

    default_code = "engine_failure"


class Unavailable(ApiError):
    """The server is starting or shutting down, lacks a component that the call needs, or its disk failed."""

    status = 503


class TimedOut(ApiError):
    """The request exceeded the server's time limit and was aborted."""

    status = 504
    default_code = "request_timeout"


class InsufficientStorage(ApiError):
    """A disk of the server is full; the message says what it holds. Nothing was changed."""

    status = 507
    default_code = "disk_full"


_VECTORS_ERRORS: tuple[tuple[type[VectorsError], type[ApiError], str], ...] = (
    (InvalidVector, InvalidRequest, "invalid_vector"),
    (InvalidData, InvalidRequest, "invalid_training_data"),
    (InvalidMethod, InvalidRequest, "invalid_method"),
    (MissingDependency, Unavailable, "missing_dependency"),
    (InvalidVectorName, InvalidRequest, "invalid_vector_name"),
    (InvalidLayers, InvalidRequest, "invalid_layers"),
    (InvalidRevision, InvalidRequest, "invalid_revision"),
    (VectorNotFound, NotFound, "vector_not_found"),
    (RevisionNotFound, NotFound, "revision_not_found"),
    (VectorExists, Conflict, "vector_exists"),
    (RevisionMismatch, PreconditionFailed, "precondition_failed"),
    (VectorTooLarge, PayloadTooLarge, "payload_too_large"),
    (StorageFull, InsufficientStorage, "disk_full"),
    (StorageGone, Unavailable, "storage_gone"),
    (StorageFailed, Unavailable, "storage_failed"),
    (StoreCorrupt, Unavailable, "stored_data_damaged"),
)


def from_vectors_error(error: VectorsError, param: str | None = None) -> ApiError:
    """The API error for an error of the `vectors` package; `param` is used when the error does not name its own."""
    for source, target, code in _VECTORS_ERRORS:
        if isinstance(error, source):
            own = error.param if isinstance(error, InvalidVector | InvalidMethod) else None
            return target(str(error), code=code, param=own or param)
    return EngineFailure("the vector registry failed; the details are in the server's log", code="registry_failure")
