"""A calibration as a task: a file of prompts -> the calibrated vector, its report and its plot.

The same for a job on the server and for the command line.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace

from vectors.calibration.calibrate import Asked, Calibrated, calibrate
from vectors.calibration.plot import calibration_plot
from vectors.calibration.prompts import PROMPTS, PROMPTS_FILE, prompts_jsonl
from vectors.calibration.view import CalibratedModel
from vectors.data.items import Message
from vectors.training.progress import Report
from vectors.training.task import Done, Task, check_installed
from vectors.vector import SteeringVector

PLOT = "dose.png"


def carry_out_calibration(
    task: Task,
    view: CalibratedModel,
    vector: SteeringVector,
    prompts: Sequence[Sequence[Message]],
    content: bytes,
    name: str,
    report: Report,
) -> Done:
    """Calibrate `vector` on at most `task.max_prompts` of `prompts`, read from the file `name` with this `content`.

    Raises what `calibrate` raises.
    """
    check_installed()
    found = _calibrate(task, view, vector, prompts[: task.max_prompts], content, name, report)
    low, high = found.report["calibration"]["safe_scale"]
    reason = f"the safe range is {low:g} to {high:g}"
    files = (
        ("report.json", (json.dumps(found.report, indent=1, allow_nan=False) + "\n").encode()),
        (PLOT, calibration_plot("dose: how strong the vector may be", found.report)),
    )
    return Done(found.vector, found.report, files, 0, True, reason)


def with_calibration(done: Done, task: Task, view: CalibratedModel, report: Report) -> Done:
    """What training has `done`, with its vector calibrated on the shipped prompts, if it has one.

    The report has the calibration under `dose`. Raises what `calibrate` raises.
    """
    if done.vector is None:
        return done
    prompts = [[Message("user", prompt)] for prompt in PROMPTS[: task.max_prompts]]
    found = _calibrate(task, view, done.vector, prompts, prompts_jsonl(), PROMPTS_FILE, report)
    reported = {**done.report, "dose": found.report}
    (first, _), *others = done.files
    content = (json.dumps(reported, indent=1, allow_nan=False) + "\n").encode()
    plot = (PLOT, calibration_plot("dose: how strong the vector may be", found.report))
    return replace(done, vector=found.vector, report=reported, files=((first, content), plot, *others))


def _calibrate(
    task: Task,
    view: CalibratedModel,
    vector: SteeringVector,
    prompts: Sequence[Sequence[Message]],
    content: bytes,
    name: str,
    report: Report,
) -> Calibrated:
    """Prompts are chats where the model has a chat template, and otherwise their last turns as plain text."""
    encoded = [
        view.encode_chat(prompt) if view.has_chat_template else view.encode(prompt[-1].content) for prompt in prompts
    ]
    sha256 = hashlib.sha256(content).hexdigest()
    asked = Asked(task.kl, task.method.max_perplexity, encoded, name, sha256)
    return calibrate(view, vector, asked, report)
