"""The options of `tiller evaluate --prompts`, as rows like those of `vectors.training.options`."""

from __future__ import annotations

from typing import Any

from vectors.training.options import Option
from vectors.training.values import Number, OneOf, Text, Value, Whole

GROUP = "generated answers, in place of DATA"


def _row(name: str, metavar: str, value: Value, help: str, default: Any = None, default_text: str = "none") -> Option:
    return Option(
        name=name,
        field=name,
        value=value,
        default=default,
        uses=("evaluate",),
        help=help,
        metavar=metavar,
        example="",
        group=GROUP,
        default_text=default_text if default is None else str(default),
    )


_FILE = Text("a file")

PROMPTS = _row("prompts", "FILE", _FILE, "open-ended prompts: rows of prompt, messages or question")
RULE = _row(
    "rule",
    "REGEX",
    Text("a regular expression"),
    "an answer shows the concept if this is found in it (Python's re; case does not count)",
)
WORDS = _row("words", "FILE", _FILE, "an answer shows the concept if it has one of these words or phrases, a line each")
CLASSIFIER = _row(
    "classifier", "FILE", _FILE, "labelled texts (text and label, or positive and negative) to fit a classifier to"
)
JUDGE = _row(
    "judge",
    "URL",
    Text("a URL"),
    "an OpenAI-compatible endpoint whose model rates the answers, as in http://host:8000/v1",
)
JUDGE_MODEL = _row("judge_model", "NAME", Text("a model's name"), "the model to ask at --judge")
JUDGE_FORM = _row(
    "judge_form",
    "FORM",
    OneOf(("axbench", "caa")),
    "axbench (concept, instruction and fluency, 0 to 2 each) or caa (the concept alone, 1 to 10)",
    "axbench",
)
UNSET = "unset"
"""The word after `--judge-temperature` for sending the judge none."""
JUDGE_TEMPERATURE = _row(
    "judge_temperature", "NUMBER", Number(0, 2), f"temperature of the judge; {UNSET} sends none", 0
)
CONCEPT = _row("concept", "TEXT", Text("text"), "what the judge looks for, in words")
SAMPLES = _row("samples", "N", Whole(0, 100), "sampled answers to each prompt, beside the greedy one", 2)
TEMPERATURE = _row("temperature", "NUMBER", Number(0, 2), "temperature of the sampled answers", 1)
MAX_TOKENS = _row("max_tokens", "N", Whole(1, 100_000), "most tokens of an answer", 128)

GENERATED = (
    PROMPTS,
    RULE,
    WORDS,
    CLASSIFIER,
    JUDGE,
    JUDGE_MODEL,
    JUDGE_FORM,
    JUDGE_TEMPERATURE,
    CONCEPT,
    SAMPLES,
    TEMPERATURE,
    MAX_TOKENS,
)
"""The rows, in the order of the help."""

ONLY_FOR_JUDGES = (JUDGE_MODEL, JUDGE_FORM, JUDGE_TEMPERATURE, CONCEPT)
"""The rows that apply to `JUDGE`."""
