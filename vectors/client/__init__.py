"""The registry of a running server from Python: `VectorClient` and `AsyncVectorClient`. Importing it loads no torch."""

from __future__ import annotations

from vectors.client.clients import AsyncVectorClient, DamagedVector, RegisteredVector, VectorClient
from vectors.client.errors import (
    ClientError,
)

__all__ = ["AsyncVectorClient", "ClientError", "DamagedVector", "RegisteredVector", "VectorClient"]
