"""`make test-soak MINUTES=30`: a real server under everything at once, killed now and then, on one folder.

What was acknowledged must be there after each kill, answers must be what they are alone, and what the server holds must
be flat. The exit status is 1, with the reason, if anything failed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tests.soak.report import write_report
from tests.soak.run import Plan, Soak
from tests.soak.run import Progress as Tell

SECONDS_BETWEEN_LINES = 30.0


def main(arguments: list[str]) -> int:
    """Run the soak; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=_positive, default=30, metavar="N", help="for which the server serves (30)")
    parser.add_argument(
        "--kill-every",
        type=_positive,
        default=5,
        metavar="MINUTES",
        help="between kills, of which there is one or more (5)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the clients' choices (0)")
    parser.add_argument(
        "--output", type=Path, default=Path("build/soak"), metavar="FOLDER", help="for the report and plot (build/soak)"
    )
    options = parser.parse_args(arguments)
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    options.output.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="data-", dir=options.output.resolve()))
    plan = Plan(60 * options.minutes, 60 * options.kill_every, folder, options.seed)
    with _progress(plan.seconds) as tell:
        soak = Soak(plan, tell)
        is_good = soak.run()
    write_report(soak, options.output)
    print((options.output / "report.md").read_text(encoding="utf-8"))
    if is_good:
        shutil.rmtree(folder)
    else:
        print(f"FAILED: {soak.failures[0]}\nthe server's folder is kept: {folder}")
    print(f"report, plot, readings and log: {options.output}")
    return 0 if is_good else 1


def _positive(text: str) -> float:
    number = float(text)
    if not 0 < number < 1e5:
        raise argparse.ArgumentTypeError(f"expected a number of minutes above 0, got {text}")
    return number


@contextlib.contextmanager
def _progress(seconds: float) -> Iterator[Tell]:
    """A bar with an estimate on a terminal, otherwise a line now and then."""
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        told_at = -SECONDS_BETWEEN_LINES

        def tell(done: float, text: str) -> None:
            nonlocal told_at
            if time.monotonic() - told_at >= SECONDS_BETWEEN_LINES:
                told_at = time.monotonic()
                left = max(0.0, seconds - done) / 60
                print(f"[{done / 60:.1f}/{seconds / 60:g} min, {left:.1f} left] {text}", file=sys.stderr, flush=True)

        yield tell
        return
    columns = (BarColumn(bar_width=24), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.description}", markup=False), console=console) as progress:
        task = progress.add_task("", total=seconds)
        yield lambda done, text: progress.update(task, completed=done, description=text)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
