"""Why a training failed, as clients are told: what a client can act on in words, and everything else by its kind."""

from __future__ import annotations

from server.durable_database import DatabaseRefused
from server.errors import ApiError
from server.jobs.records import JobError
from vectors.errors import (
    InvalidData,
    InvalidMethod,
    InvalidVector,
    StorageFailed,
    StorageFull,
    StoreCorrupt,
    StoreLocked,
    VectorsError,
)


def describe_failure(error: Exception) -> JobError:
    """The reason for a failed training, as shown to clients."""
    if isinstance(error, InvalidMethod):
        return JobError("invalid_method", str(error), f"method.steering.{error.param}" if error.param else None)
    if isinstance(error, InvalidData):
        return JobError("invalid_training_data", str(error))
    if isinstance(error, StorageFull):
        return JobError("disk_full", str(error))
    if isinstance(error, StorageFailed):
        return JobError("storage_failed", str(error))
    if isinstance(error, StoreCorrupt):
        return JobError("stored_data_damaged", str(error))
    if isinstance(error, ApiError) and error.status < 500:
        return JobError(error.code or "training_failed", error.message, error.param)
    if isinstance(error, VectorsError) and not isinstance(error, StoreLocked | DatabaseRefused):
        return JobError("training_failed", str(error), error.param if isinstance(error, InvalidVector) else None)
    return JobError("server_error", "the training failed; the server's log has the details")
