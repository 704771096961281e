"""What happens to standard output when its reader is gone."""

from __future__ import annotations

import os
import sys


def discard_output() -> None:
    """Discard further output, and what Python could not flush at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
