"""The safe ranges of the demo model's vectors, measured by a calibration: `python -m server.demo.dose`.

Like `tiller calibrate` on tiller's own prompts, in float32 and without compiled kernels, and written into the vectors'
own files.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from server.demo import MODEL_DIR, MODEL_NAME, VECTORS_DIR
from server.engine.engine import BatchingEngine, EngineSettings
from server.engine.model import load_model
from server.text import load_text
from server.training.engine_view import EngineView
from vectors.calibration.prompts import PROMPTS, PROMPTS_FILE, prompts_jsonl
from vectors.calibration.task import carry_out_calibration
from vectors.data.items import Message
from vectors.formats import decode
from vectors.formats.safetensors import encode_safetensors
from vectors.training.task import Task

_LIMITS = EngineSettings(num_pages=400, max_running=32, max_batch_tokens=2048)


def calibrate_vectors(model_dir: Path, vectors_dir: Path) -> dict[str, tuple[float, float]]:
    """Calibrate each vector of a folder and write it; returns the safe ranges by name."""
    found: dict[str, tuple[float, float]] = {}
    prompts = [[Message("user", prompt)] for prompt in PROMPTS]
    model = load_model(model_dir, model_id=MODEL_NAME, device="cpu", dtype="float32", kernels="torch")
    with BatchingEngine(model, _LIMITS) as engine:
        view = EngineView(engine, load_text(model_dir))
        for path in sorted(vectors_dir.glob("*.safetensors")):
            task = Task.from_json({"task": "calibrate", "vector": path.stem})
            vector = decode(path.read_bytes()).with_defaults(calibration=None)
            done = carry_out_calibration(
                task, view, vector, prompts, prompts_jsonl(), PROMPTS_FILE, lambda progress: None
            )
            assert done.vector is not None
            assert done.vector.calibrated is not None
            path.write_bytes(encode_safetensors(done.vector))
            found[path.stem] = done.vector.calibrated.safe_scale
    return found


def main(arguments: list[str] | None = None) -> None:
    """Read the command line and calibrate the vectors."""
    parser = argparse.ArgumentParser(prog="python -m server.demo.dose", description="Calibrate the demo's vectors.")
    parser.add_argument("--model", type=Path, default=MODEL_DIR)
    parser.add_argument("--vectors", type=Path, default=VECTORS_DIR)
    options = parser.parse_args(arguments)
    for name, (low, high) in calibrate_vectors(options.model, options.vectors).items():
        print(f"{name}: safe from {low:g} to {high:g}")


if __name__ == "__main__":
    main()
