"""The answers that are being streamed, by their ids: another request of the same caller may end choices of them."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Protocol

from server.errors import NotFound


class Stream(Protocol):
    """What is being streamed: choices that can be ended one by one, and all together."""

    def cancel(self, indices: Collection[int] | None) -> list[int]:
        """End the choices of these indices, or all; returns those that were not complete."""
        ...

    def close(self) -> None:
        """End what still runs."""
        ...


class OpenStreams:
    """The streams that are being sent. Used on the event loop only."""

    def __init__(self) -> None:
        self._streams: dict[str, tuple[str, Stream]] = {}

    def add(self, answer_id: str, owner: str, stream: Stream) -> Callable[[], None]:
        """Keep the stream of an answer to `owner`. Returns what closes it, which must be called at its end."""
        self._streams[answer_id] = (owner, stream)

        def close() -> None:
            self._streams.pop(answer_id, None)
            stream.close()

        return close

    def cancel(self, answer_id: str, owner: str, indices: Collection[int] | None) -> list[int]:
        """End choices of an answer; returns those that were not complete.

        Raises `NotFound` unless `owner` has such a stream, and `InvalidRequest` for an index that it does not have.
        """
        held_by, stream = self._streams.get(answer_id, ("", None))
        if stream is None or held_by != owner:
            raise NotFound(
                f"no answer {answer_id[:80]!r} is being streamed to you; one that is complete cannot be cancelled",
                code="not_found",
            )
        return stream.cancel(indices)
