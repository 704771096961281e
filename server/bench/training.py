"""The speed of a search: the paper's grid on the embedded model, by the engine and by the slow loop.

`python -m server.bench.training` runs, in turns, the engine with every cell, the engine with the race (`--race` of a
training), and the slow loop (float32, `paper` letters). It prints seconds of the CPU and of the clock as median, least
and most, the ratios to the slow loop of each round, whether all choose the same cell, answers per second, and peak
memory. With `--loop-share` the slow loop has only so large a part of the items, and its seconds are scaled up: each of
its passes is of one prompt, so it takes as many times as long with as many times the items. On a machine with other
work the seconds of the CPU say more than those of the clock.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from transformers import AutoModelForCausalLM, AutoTokenizer

from server.bench.offline import peak_memory_mib
from server.bench.paper_loop import PaperLoop
from server.demo import MODEL_DIR, MODEL_NAME
from server.demo.heldout import quiz_items
from server.engine.engine import BatchingEngine, EngineSettings
from server.engine.model import LoadedModel, load_model
from server.text import load_text
from server.training.engine_view import EngineView
from vectors.data import shuffle_alike, split_items
from vectors.data.items import ChoiceItem, DataSet
from vectors.training.method import PAPER_SCALES, Method
from vectors.training.progress import Progress
from vectors.training.report import CellName
from vectors.training.train import TrainingData, train

VARIANTS = ("pas_full", "ipas_all", "ipas_wrong_only")
SITES = ("residual", "mlp")
LAYERS = (5, 4, 3, 2, 1)
"""The last one first, as in the paper. Two sites at five blocks are ten places, as many as the paper's layers."""

SEARCH_PHASES = ("answering", "reading activations", "searching")
SEED = 0
NUM_ITEMS = 1000
NUM_WARM_UP = 40
LOOP = "slow loop"
_PAGES = 4000
_BATCH_TOKENS = 1024

_out = Console(highlight=False)


def paper_method() -> Method:
    """A grid of the paper's size: 3 variants × 10 places × the 14 scales of its residual stream, at both sites."""
    given = {"variant": list(VARIANTS), "site": list(SITES), "layers": list(LAYERS), "letters": "paper"}
    return Method.from_json(given | {"scales": list(PAPER_SCALES)})


def sycophancy_items(count: int) -> DataSet:
    """The embedded model's own set: questions with a user's wrong belief."""
    items = tuple(
        ChoiceItem(item.question, item.choices, item.answer, item.context)
        for item in quiz_items(11, count, "held_out", "wrong")
    )
    return DataSet("sycophancy", "0" * 64, items)


@dataclass(frozen=True, slots=True)
class Run:
    """One search: what it chose, the accuracy of each cell, and its seconds of the CPU and of the clock.

    `phases` are seconds of the CPU by phase of a training, test and retention too; the slow loop has none. `share`: of
    the items; seconds are scaled to all of them.
    """

    chosen: CellName
    accuracies: Mapping[CellName, float | None]
    cpu: float
    wall: float
    phases: Mapping[str, float] = field(default_factory=dict)
    answers_per_second: float | None = None
    share: float = 1.0


class _Clock:
    """Seconds of the CPU and of the clock by phase, from the progress of a training."""

    def __init__(self) -> None:
        self._phase = ""
        self._since = (0.0, 0.0)
        self.cpu: dict[str, float] = {}
        self.wall: dict[str, float] = {}

    def report(self, progress: Progress) -> None:
        """Receives progress."""
        if progress.phase != self._phase:
            self.begin(progress.phase)

    def begin(self, phase: str) -> None:
        """End the phase and begin another."""
        now = (time.process_time(), time.monotonic())
        if self._phase:
            for seconds, end, since in zip((self.cpu, self.wall), now, self._since, strict=True):
                seconds[self._phase] = seconds.get(self._phase, 0.0) + end - since
        self._phase, self._since = phase, now


def run_engine(model: LoadedModel, num_items: int, *, race: bool) -> Run:
    """One whole training by the engine."""
    settings = EngineSettings(num_pages=_PAGES, max_batch_tokens=_BATCH_TOKENS)
    data, method, clock = TrainingData(sycophancy_items(num_items)), replace(paper_method(), race=race), _Clock()
    with BatchingEngine(model, settings) as engine:
        view = EngineView(engine, load_text(str(MODEL_DIR)))
        report = train(view, data, method, seed=SEED, report=clock.report).report
    clock.begin("")
    chosen = report["chosen"]
    return Run(
        (chosen["variant"], chosen["site"], chosen["layers"][0], chosen["grid_scale"]),
        {(cell["variant"], cell["site"], cell["layer"], cell["scale"]): cell["validation"] for cell in report["grid"]},
        sum(clock.cpu[phase] for phase in SEARCH_PHASES),
        sum(clock.wall[phase] for phase in SEARCH_PHASES),
        clock.cpu,
        report["items_per_second"],
    )


def run_slow_loop(num_items: int, share: float = 1.0) -> Run:
    """The same search a prompt and a cell at a time, of a `share` of the items."""
    method = paper_method()
    items = [item for item in sycophancy_items(round(num_items * share)).items if isinstance(item, ChoiceItem)]
    share = len(items) / num_items
    parts = split_items(items, method.split, SEED, method.max_items, by_item=True)
    model: Any = AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32)
    torch.nn.Module.eval(model)
    loop = PaperLoop(model, AutoTokenizer.from_pretrained(MODEL_DIR))
    places = [(site, layer) for site in SITES for layer in LAYERS]
    columns = (TextColumn("slow loop"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Bars(*columns, console=Console(stderr=True)) as bars:
        bar = bars.add_task("", total=len(VARIANTS) * len(places) * len(PAPER_SCALES))
        began, cpu = time.monotonic(), time.process_time()
        cells = loop.search(
            shuffle_alike(parts.train, SEED),
            shuffle_alike(parts.validation, SEED),
            method.variants,
            places,
            PAPER_SCALES,
            lambda: bars.advance(bar),
        )
        cpu, wall = time.process_time() - cpu, time.monotonic() - began
    accuracies = {(cell.variant, cell.site, cell.layer, cell.scale): cell.accuracy for cell in cells}
    chosen = max(accuracies, key=lambda name: accuracies[name])  # the first of equals
    return Run(chosen, accuracies, cpu / share, wall / share, share=share)


def compare(rounds: Sequence[Mapping[str, Run]]) -> dict[str, Any]:
    """What rounds of the same runs by name show; those of `LOOP`, if there are any, are what others are compared to."""
    found: dict[str, Any] = {}
    for name in rounds[0]:
        runs = [each[name] for each in rounds]
        shown: dict[str, Any] = found.setdefault(name, {})
        shown |= {
            "cpu_seconds": _spread([run.cpu for run in runs]),
            "wall_seconds": _spread([run.wall for run in runs]),
            "chosen": list(runs[0].chosen),
        }
        if name == LOOP:
            shown["share_of_items"] = runs[0].share
        else:
            shown["answers_per_second"] = _spread([run.answers_per_second or 0.0 for run in runs])
            shown["cpu_seconds_by_phase"] = {
                phase: _spread([run.phases[phase] for run in runs]) for phase in runs[0].phases
            }
        if LOOP in rounds[0] and name != LOOP:
            loops = [each[LOOP] for each in rounds]
            slow = loops[0].accuracies
            shown["times_faster_by_cpu"] = _spread([loop.cpu / run.cpu for loop, run in zip(loops, runs, strict=True)])
            shown["times_faster"] = _spread([loop.wall / run.wall for loop, run in zip(loops, runs, strict=True)])
            if loops[0].share == 1:
                shown["same_cell"] = all(run.chosen == loop.chosen for loop, run in zip(loops, runs, strict=True))
                shown["cells_with_another_accuracy"] = sum(
                    accuracy not in (None, slow[cell]) for cell, accuracy in runs[0].accuracies.items()
                )
    return found


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m server.bench.training", description=__doc__)
    parser.add_argument("--items", type=int, default=NUM_ITEMS, help="labelled items (default: 1000 = 600/200/200)")
    parser.add_argument("--repeats", type=int, default=3, help="rounds (default: 3)")
    parser.add_argument("--no-slow-loop", action="store_true", help="leave out the slow loop, which takes minutes")
    parser.add_argument(
        "--loop-share", type=float, default=1.0, help="the part of the items that the slow loop has (default: all)"
    )
    options = parser.parse_args(arguments)
    model = load_model(str(MODEL_DIR), model_id=MODEL_NAME, device="cpu", dtype="float32")
    for race in (False, True):
        run_engine(model, NUM_WARM_UP, race=race)
    rounds = []
    for _ in range(options.repeats):
        runs = {"whole grid": run_engine(model, options.items, race=False)}
        runs["race"] = run_engine(model, options.items, race=True)
        if not options.no_slow_loop:
            runs[LOOP] = run_slow_loop(options.items, options.loop_share)
        rounds.append(runs)
    threads = torch.get_num_threads()
    found = {"items": options.items, "threads": threads, **compare(rounds), "peak_memory_mib": peak_memory_mib()}
    _out.print_json(json.dumps(found))


if __name__ == "__main__":
    main()
