"""How a command fails."""

from __future__ import annotations

FAILED = 1
USAGE = 2


class CommandFailed(Exception):
    """A failure shown to the user as one line, without a traceback."""

    def __init__(self, message: str, exit_code: int = FAILED) -> None:
        super().__init__(message)
        self.exit_code = exit_code
