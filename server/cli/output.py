"""What becomes of standard output when nobody reads it. It knows no command."""

from __future__ import annotations

import os
import sys


def discard_output() -> None:
    """Throw away what is written from here on, and what Python would complain that it cannot flush at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
