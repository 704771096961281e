"""Makes one change of a data folder while a step of it fails; started with the failing file layer preloaded.

Each line of stdin is the path of a task in JSON: `folder`, `change`, `step`, `fault`, `copy`. A forked child opens the
folder, makes the change with the fault, writes beside the task (`.told`) what a client would have got, which steps
there were, and what can be read while the fault lasts, copies the folder as a crash would leave it, and then makes the
change again without a fault (`.again`).
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

from server.errors import ApiError, from_vectors_error
from tests.faults.changes import CHANGES, House, contents_of, opened
from tests.faults.layer import Fault, arm, disarm
from vectors.errors import VectorsError


def answer_to(change: str, house: House) -> str:
    """The status and code that a client gets for a change, by the API's own table of errors."""
    try:
        CHANGES[change](house)
    except ApiError as error:
        return f"{error.status} {error.code}"
    except VectorsError as error:
        found = from_vectors_error(error)
        return f"{found.status} {found.code}"
    except Exception as error:
        return f"500 {type(error).__name__}"
    return "done"


def work(task: Path) -> None:
    """What the child does."""
    asked = json.loads(task.read_text())
    folder = Path(asked["folder"])
    with opened(folder) as house:
        fault = Fault(asked["fault"])
        arm(folder, asked["step"], fault)
        told = answer_to(asked["change"], house)
        read = repr(contents_of(house)) if fault.lasts else None
        steps = disarm()
        task.with_suffix(".told").write_text(json.dumps({"told": told, "steps": steps, "read": read}))
        shutil.copytree(folder, asked["copy"])
        task.with_suffix(".again").write_text(json.dumps(answer_to(asked["change"], house)))


def main() -> None:
    """A child for each line."""
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            try:
                work(Path(line.strip()))
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        print("ended", flush=True)


if __name__ == "__main__":
    main()
