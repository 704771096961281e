"""A reader of parts that goes by the tokens alone, and steerings that leave parts of a response alone."""

from __future__ import annotations

from collections.abc import Sequence

from tests.reference import Steer
from tests.server.engine.driving import random_direction
from vectors.vocabulary import PARTS, Part


def part_after(response: Sequence[int]) -> Part:
    """A part that changes with what was said: by the sum of all tokens."""
    return PARTS[sum(response) % len(PARTS)]


class _State:
    def __init__(self) -> None:
        self._response: list[int] = []

    @property
    def part(self) -> Part:
        return part_after(self._response)

    def accept(self, token_id: int) -> None:
        self._response.append(token_id)


class Parts:
    """A reader of parts for the engine that says what `part_after` says."""

    def start(self) -> _State:
        return _State()


STEERINGS = {
    "answer only": [Steer(random_direction(1), 1, parts=("content",))],
    "calls only, everywhere in the prompt": [Steer(random_direction(2), 1, positions="all", parts=("tool_calls",))],
    "two vectors, two parts": [
        Steer(random_direction(3), 0, parts=("content", "structured")),
        Steer(random_direction(4), 2, "mlp", parts=("reasoning",), operation="ablate"),
    ],
    "prompt": [Steer(random_direction(5), 1, positions="prompt", parts=("tool_calls",))],
    "windows": [
        Steer(random_direction(7), 1, positions=("response", 0, 9), parts=("content", "reasoning")),
        Steer(random_direction(8), 0, positions=("response", 4, None), parts=("structured", "content")),
        Steer(random_direction(9), 2, positions=("prompt", -2, None), parts=("tool_calls",)),
    ],
    "norm": [Steer(random_direction(6), 1, parts=("structured", "tool_calls"), preserve_norm=True)],
}
