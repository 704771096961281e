"""How a command fails. It knows no command."""

from __future__ import annotations

FAILED = 1
USAGE = 2


class CommandFailed(Exception):
    """A failure that the person at the terminal can understand: shown as one line, without a traceback."""

    def __init__(self, message: str, exit_code: int = FAILED) -> None:
        super().__init__(message)
        self.exit_code = exit_code
