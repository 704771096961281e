"""`tiller doctor`: what is wrong with a data folder, and its repair."""

from __future__ import annotations

import argparse
from pathlib import Path

from server.cli.errors import FAILED, USAGE, CommandFailed


def doctor(arguments: argparse.Namespace) -> int:
    """Report, and repair if asked to; returns 0 for a whole folder, else 1. Raises `CommandFailed`."""
    from server.doctor import examine, mend
    from vectors.errors import VectorsError

    folder = Path(arguments.folder).expanduser()
    if not folder.is_dir():
        raise CommandFailed(f"{folder}: no such folder", USAGE)
    try:
        for line in mend(folder) if arguments.repair else ():
            print(f"repaired: {line}")
        found = examine(folder)
    except VectorsError as error:
        raise CommandFailed(str(error)) from error
    except OSError as error:
        raise CommandFailed(f"{error.filename or folder}: {error.strerror or error}") from error
    for finding in found:
        print(f"wrong: {finding.problem}\n       {finding.remedy}")
    if not found:
        print(f"{folder} is whole")
    return FAILED if found else 0
