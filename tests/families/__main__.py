"""`make test-families NAMES="llama gemma2"`: the sweep over the families of transformers; without names, over all.

A family is served from a tiny checkpoint with random weights and held against transformers itself. The sweep fails
when one is wrong or raises, or is no longer as good as `recorded.json` says. `--record` writes what was found there.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

from tests.families.children import Outcome, judge_each
from tests.families.results import RECORDED, counted, failures, news, outcomes_markdown
from tests.families.verdict import FAULTS, read_verdicts, write_verdicts


def main(arguments: list[str]) -> int:
    """Run the sweep; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.families", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="families and variants; all when none is named")
    parser.add_argument("--record", action="store_true", help=f"write what is found to {RECORDED.name}")
    parser.add_argument("--at-once", type=int, default=2, metavar="N", help="how many run at a time (2)")
    parser.add_argument("--limit", type=float, default=300, metavar="SECONDS", help="for one family (300)")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="where a table and JSON of the run go")
    options = parser.parse_args(arguments)
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    from tests.families.configurations import NAMES
    from tests.families.family import judge

    names = options.names or list(NAMES)
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; families are named as transformers' model types")
    outcomes: list[Outcome] = []
    started = time.monotonic()
    children = judge_each(names, judge, limit=options.limit, at_once=options.at_once, preload=["tests.families.family"])
    for outcome in children:
        outcomes.append(outcome)
        print(_progress(outcome, len(outcomes), len(names), time.monotonic() - started), flush=True)
    return _conclude(outcomes, options.record, options.output)


def _progress(outcome: Outcome, number: int, total: int, elapsed: float) -> str:
    left = elapsed / number * (total - number)
    verdict = outcome.verdict
    said = f"[{number}/{total}, {left / 60:.0f} min left] {outcome.name}: {verdict.kind}"
    return f"{said}: {verdict.why[:150]}" if verdict.why else said


def _conclude(outcomes: list[Outcome], records: bool, output: Path | None) -> int:
    found = {outcome.name: outcome.verdict for outcome in outcomes}
    recorded = read_verdicts(RECORDED) if RECORDED.exists() else {}
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        (output / "families.md").write_text(outcomes_markdown(outcomes), encoding="utf-8")
        as_json = {outcome.name: outcome.verdict.as_json() | {"seconds": outcome.seconds} for outcome in outcomes}
        (output / "families.json").write_text(json.dumps(as_json, indent=1) + "\n", encoding="utf-8")
    print(f"\n{len(found)} families: {counted(found.values())}")
    failed = failures(found, recorded)
    for line in failed:
        print(f"FAILED {line}")
    if records:
        sound = {name: verdict for name, verdict in found.items() if verdict.kind not in FAULTS}
        write_verdicts(RECORDED, recorded | sound)
    else:
        for line in news(found, recorded):
            print(f"not as recorded: {line}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
