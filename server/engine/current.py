"""Holds what is current during one forward pass, for code that transformers' models call without passing it along."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Generic, TypeVar

T = TypeVar("T")


class Current(Generic[T]):
    """A value that exists while its context lasts; contexts do not nest. `name`: for debugging."""

    def __init__(self, name: str) -> None:
        self._value: ContextVar[T | None] = ContextVar(name, default=None)

    @contextmanager
    def set_to(self, value: T) -> Iterator[T]:
        """Make `value` the current one inside."""
        assert self._value.get() is None, "a step is already running"
        token = self._value.set(value)
        try:
            yield value
        finally:
            self._value.reset(token)

    def get(self) -> T | None:
        """The current value; None outside of every context."""
        return self._value.get()

    def require(self) -> T:
        """The current value, inside a context."""
        value = self._value.get()
        assert value is not None, "no step is running"
        return value
