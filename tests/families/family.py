"""The verdict on one family: makes its tiny model, serves it from its folder, and holds it against transformers."""

from __future__ import annotations

import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

from transformers import PreTrainedModel

from server.engine.model import LoadedModel, load_model
from server.engine.refusal import ModelRefused
from tests.families.checks import check_model, check_runs
from tests.families.joins import describe_sites
from tests.families.models import load_plain, make_model, save_model
from tests.families.verdict import Verdict
from vectors.sites import find_sites

_SHOWN_PROBLEMS = 4


def judge(name: str) -> Verdict:
    """The verdict on a family or variant."""
    with tempfile.TemporaryDirectory(prefix="tiller-family-") as temporary:
        folder = Path(temporary) / name
        try:
            model = make_model(name)
            save_model(model, folder)
        except MemoryError:
            raise
        except Exception as error:  # whatever transformers raises is the answer
            return Verdict("unbuilt", _short(error))
        try:
            return _judge(folder, lambda: load_plain(folder, model))
        except MemoryError:  # the parent says how much there is
            raise
        except Exception as error:
            frames = traceback.extract_tb(error.__traceback__)
            return Verdict("traceback", f"{_short(error)} ({Path(frames[-1].filename).name}:{frames[-1].lineno})")


def _judge(folder: Path, load_reference: Callable[[], PreTrainedModel]) -> Verdict:
    try:
        loaded = _load(folder, "float32")
    except ModelRefused as error:
        return Verdict("refused", str(error).replace(str(folder), folder.name))
    plain = load_reference()
    findings = check_model(plain, loaded)
    findings.problems += check_runs(_load(folder, "bfloat16")).problems
    if findings.problems:
        more = len(findings.problems) - _SHOWN_PROBLEMS
        shown = "; ".join(findings.problems[:_SHOWN_PROBLEMS])
        return Verdict("wrong", shown + (f"; and {more} more" if more > 0 else ""))
    described = {"residual": "", **describe_sites(plain, find_sites(plain))}
    offered = {place: words for place, words in described.items() if place in (*loaded.info.sites, "block")}
    return Verdict("exact", findings.caveat, offered)


def _load(folder: Path, dtype: str) -> LoadedModel:
    return load_model(folder, device="cpu", dtype=dtype)


def _short(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:300]
