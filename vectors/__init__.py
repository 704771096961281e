"""Steering vectors from Python: load, save, apply and train them, and talk to a server's registry.

    vectors.load, vectors.save      a `SteeringVector` from and to a file
    vectors.steer                   a transformers model, steered while a context is open
    vectors.Gate                    on which tokens it is steered: those of which a probe says so
    vectors.read                    what a probe reads of its tokens while a context is open
    vectors.train                   a vector from labelled data, on a transformers model
    vectors.VectorClient            the registry of a running server; `AsyncVectorClient` for asyncio

Names are imported on first use, so the client alone loads neither torch nor numpy. Nothing here imports `server`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from vectors.errors import MissingDependency, VectorsError

if TYPE_CHECKING:
    from vectors.client.clients import AsyncVectorClient, VectorClient
    from vectors.client.errors import ClientError
    from vectors.files import load, save
    from vectors.plain.gates import Gate
    from vectors.plain.steering import read, steer
    from vectors.plain.training import train
    from vectors.vector import SteeringVector

__all__ = [
    "AsyncVectorClient",
    "ClientError",
    "Gate",
    "MissingDependency",
    "SteeringVector",
    "VectorClient",
    "VectorsError",
    "load",
    "read",
    "save",
    "steer",
    "train",
]

_CLIENT, _STEER, _TRAIN = "client", "steer", "train"

_HOMES = {
    "AsyncVectorClient": ("vectors.client.clients", _CLIENT),
    "ClientError": ("vectors.client.errors", _CLIENT),
    "Gate": ("vectors.plain.gates", _STEER),
    "SteeringVector": ("vectors.vector", _STEER),
    "VectorClient": ("vectors.client.clients", _CLIENT),
    "load": ("vectors.files", _STEER),
    "read": ("vectors.plain.steering", _STEER),
    "save": ("vectors.files", _STEER),
    "steer": ("vectors.plain.steering", _STEER),
    "train": ("vectors.plain.training", _TRAIN),
}
"""Where each name is defined, and the extra that brings what its module imports."""

if not TYPE_CHECKING:  # otherwise a type checker would accept any attribute

    def __getattr__(name: str) -> object:
        """Import a public name. Raises `MissingDependency` if its extra is not installed."""
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module, extra = _HOMES[name]
        try:
            found = getattr(importlib.import_module(module), name)
        except ModuleNotFoundError as error:
            raise MissingDependency.of(f"vectors.{name}", error, extra) from None
        globals()[name] = found
        return found

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
