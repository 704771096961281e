"""The speed of a search: the paper's grid on the embedded model, by the engine and by the slow loop.

`python -m server.bench.training` prints the ratio of the two wall times, whether both choose the same cell (float32,
`paper` letters), seconds by phase, items per second, peak memory, and how the time grows with the items.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import AutoModelForCausalLM, AutoTokenizer

from server.bench.offline import peak_memory_mib
from server.bench.paper_loop import PaperLoop, SlowCell
from server.demo import MODEL_DIR, MODEL_NAME
from server.demo.heldout import quiz_items
from server.engine.engine import BatchingEngine, EngineSettings
from server.engine.model import load_model
from server.text import load_text
from server.training.engine_view import EngineView
from vectors.data import shuffle_alike, split_items
from vectors.data.items import ChoiceItem, DataSet
from vectors.training.method import PAPER_SCALES, Method
from vectors.training.train import Trained, TrainingData, train

VARIANTS = ("pas_full", "ipas_all", "ipas_wrong_only")
SITES = ("residual", "mlp")
LAYERS = (5, 4, 3, 2, 1)
"""The last one first, as in the paper. Two sites at five blocks are ten places, as many as the paper's layers."""

SEARCH_PHASES = ("answering", "reading activations", "searching")
SEED = 0
NUM_ITEMS = 1000
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


def run_engine(num_items: int) -> tuple[Trained, float]:
    """One whole training by the engine, and its wall time in seconds (without loading the model)."""
    model = load_model(str(MODEL_DIR), model_id=MODEL_NAME, device="cpu", dtype="float32")
    settings = EngineSettings(num_pages=_PAGES, max_batch_tokens=_BATCH_TOKENS)
    text = load_text(str(MODEL_DIR))
    with BatchingEngine(model, settings) as engine:
        started = time.monotonic()
        data = TrainingData(sycophancy_items(num_items))
        trained = train(EngineView(engine, text), data, paper_method(), seed=SEED, report=lambda progress: None)
        return trained, time.monotonic() - started


def run_slow_loop(num_items: int) -> tuple[list[SlowCell], float]:
    """The same search a prompt and a cell at a time, and its wall time in seconds."""
    method = paper_method()
    items = [item for item in sycophancy_items(num_items).items if isinstance(item, ChoiceItem)]
    parts = split_items(items, method.split, SEED, method.max_items, by_item=True)
    model: Any = AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32)
    torch.nn.Module.eval(model)
    loop = PaperLoop(model, AutoTokenizer.from_pretrained(MODEL_DIR))
    places = [(site, layer) for site in SITES for layer in LAYERS]
    columns = (TextColumn("slow loop"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task("", total=len(VARIANTS) * len(places) * len(PAPER_SCALES))
        started = time.monotonic()
        cells = loop.search(
            shuffle_alike(parts.train, SEED),
            shuffle_alike(parts.validation, SEED),
            method.variants,
            places,
            PAPER_SCALES,
            lambda: progress.advance(bar),
        )
        return cells, time.monotonic() - started


def compare(trained: Trained, seconds: float, cells: Sequence[SlowCell], slow_seconds: float) -> dict[str, Any]:
    """The two searches side by side: `seconds` of the phases that the loop has, `all_seconds` of everything."""
    best = max(cells, key=lambda cell: cell.accuracy)  # the first of equals
    chosen = trained.report["chosen"]
    ours = (chosen["variant"], chosen["site"], chosen["layers"][0], chosen["grid_scale"])
    accuracies = {
        (cell["variant"], cell["site"], cell["layer"], cell["scale"]): cell for cell in trained.report["grid"]
    }
    different = sum(
        accuracies[cell.variant, cell.site, cell.layer, cell.scale]["validation"] != cell.accuracy for cell in cells
    )
    same_work = sum(trained.report["seconds"][phase] for phase in SEARCH_PHASES)
    return {
        "ratio": slow_seconds / same_work,
        "ratio_with_test_and_retention": slow_seconds / seconds,
        "slow_seconds": slow_seconds,
        "seconds": same_work,
        "all_seconds": seconds,
        "same_cell": ours == (best.variant, best.site, best.layer, best.scale),
        "chosen": list(ours),
        "slow_chosen": [best.variant, best.site, best.layer, best.scale],
        "cells": len(cells),
        "cells_with_another_accuracy": different,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m server.bench.training", description=__doc__)
    parser.add_argument("--items", type=int, default=NUM_ITEMS, help="labelled items (default: 1000 = 600/200/200)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of the engine (default: 3)")
    parser.add_argument("--no-slow-loop", action="store_true", help="leave out the slow loop, which takes minutes")
    options = parser.parse_args(arguments)
    runs = [run_engine(options.items) for _ in range(options.repeats)]
    times = [seconds for _, seconds in runs]
    median = statistics.median(times)
    trained = min(runs, key=lambda run: abs(run[1] - median))[0]
    peak = peak_memory_mib()
    found: dict[str, Any] = {}
    if not options.no_slow_loop:
        found |= compare(trained, median, *run_slow_loop(options.items))
    found |= {
        "engine_seconds": {"median": median, "each": times},
        "phases": trained.report["seconds"],
        "items_per_second": trained.report["items_per_second"],
        "peak_memory_mib": peak,
        "seconds_by_items": {
            str(size): run_engine(size)[1] for size in (options.items // 4, options.items // 2, options.items)
        },
    }
    _out.print_json(json.dumps(found))


if __name__ == "__main__":
    main()
