"""`tiller evaluate VECTOR --prompts FILE`: what a running server writes with and without a vector, and what judges say.

Everything but the answers happens here, so no server ever fetches an address that a client names.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from server.cli.client.connection import ServerClient, connect
from server.cli.errors import FAILED, USAGE, CommandFailed
from server.cli.logs import set_up_logging
from server.cli.training.answer_tables import show_behaviour
from server.cli.training.files import ANSWERS, REPORT, OutputFolder, read_file
from server.cli.training.generation import Generated, Generation, answer_prompts
from server.cli.training.judging import Judge
from server.cli.training.options import seed_of, task_options
from server.cli.training.progress import Display, display_progress
from server.cli.training.remote import base_model, check_registered
from server.keys import JUDGE_VARIABLE
from vectors.behaviour.answers import Assessment
from vectors.behaviour.prompts import OpenPrompt, read_prompts
from vectors.behaviour.rule import assess_by_rule, expression_rule, read_words, words_rule
from vectors.data.rows import decode_text
from vectors.errors import VectorsError
from vectors.training.values import Number, OneOf, Text, Value, Whole

if TYPE_CHECKING:
    from vectors.behaviour.classifier import LabelledText

_VALUES: Mapping[str, tuple[Value, Any]] = {
    "samples": (Whole(0, 100), 2),
    "max_tokens": (Whole(1, 100_000), 128),
    "max_items": (Whole(8, 100_000), 4000),
    "prompt": (OneOf(("raw", "chat")), "chat"),
    "judge_form": (OneOf(("axbench", "caa")), "axbench"),
    "concept": (Text("what the judge looks for"), None),
}
_MAX_TEMPERATURE = 2.0


def evaluate_generated(arguments: argparse.Namespace, environ: Mapping[str, str], folder: Path) -> int:
    """Evaluate `arguments.vector` on generated answers; returns the exit code. Raises `CommandFailed`."""
    _check(arguments)
    level = environ.get("TILLER_LOG_LEVEL", "").strip().lower()
    set_up_logging(level if level in ("debug", "warning", "error") else "info", as_json=False)
    output = OutputFolder(folder, vector=None, force=arguments.force)
    try:
        return _evaluate(_Asked(arguments, environ), output)
    except VectorsError as error:
        raise CommandFailed(str(error)) from None


class _Asked:
    """The arguments, read and checked before anything is sent. Raises `CommandFailed` and `VectorsError`."""

    def __init__(self, arguments: argparse.Namespace, environ: Mapping[str, str]) -> None:
        self.arguments = arguments
        self.environ = environ
        self.values = {name: _value(arguments, name) for name in _VALUES}
        self.temperature = _temperature(arguments.temperature, "--temperature", 1.0)
        self.seed = seed_of(arguments)
        self.entry: dict[str, Any] = {"vector": arguments.vector}
        if "scale" in (options := task_options(arguments)):
            self.entry["scale"] = options["scale"]
        path = Path(arguments.prompts).expanduser()
        content = read_file(path)
        self.prompts_name, self.sha256 = path.name, hashlib.sha256(content).hexdigest()
        self.prompts = _drawn(read_prompts(content, path.name), self.values["max_items"], self.seed)
        if self.values["prompt"] == "raw":
            chat = next((prompt for prompt in self.prompts if len(prompt.messages) > 1), None)
            if chat is not None:
                raise CommandFailed(
                    f"{path.name}, line {chat.line}: several messages are a chat; leave out --prompt raw", USAGE
                )
        self.rule, self.rule_says = _rule(arguments)
        self.labelled: tuple[LabelledText, ...] = ()
        if arguments.classifier is not None:
            from vectors.behaviour.classifier import read_labelled_texts

            place = Path(arguments.classifier).expanduser()
            self.labelled = read_labelled_texts(read_file(place), place.name)

    def judge(self) -> Judge:
        """The judge, not asked yet."""
        given = self.arguments.judge_temperature
        temperature = None if given == "default" else _temperature(given, "--judge-temperature", 0.0)
        key = self.environ.get(JUDGE_VARIABLE) or None
        return Judge(self.arguments.judge, self.arguments.judge_model, key, temperature)


def _evaluate(asked: _Asked, output: OutputFolder) -> int:
    from vectors.behaviour.report import behaviour_report

    arguments, seconds = asked.arguments, {}
    if arguments.judge is not None:
        with asked.judge():  # a wrong address is known before the work
            pass
    with connect(ServerClient, arguments, asked.environ) as client, display_progress() as display:
        how = Generation(
            model=base_model(client),
            entry=asked.entry,
            samples=asked.values["samples"],
            temperature=asked.temperature,
            max_tokens=asked.values["max_tokens"],
            seed=asked.seed,
            is_raw=asked.values["prompt"] == "raw",
        )
        begin = time.monotonic()
        generated = answer_prompts(client, how, asked.prompts, asked.prompts_name, display.report)
        seconds["answering"] = round(time.monotonic() - begin, 3)
        begin = time.monotonic()
        assessments = _assess(asked, generated, display)
        seconds["judging"] = round(time.monotonic() - begin, 3)
    about = {
        "model": how.model,
        "steering": list(generated.steering),
        "data": {"name": asked.prompts_name, "sha256": asked.sha256, "prompts": len(asked.prompts)},
        "seed": how.seed,
        "answers": {
            "prompt": asked.values["prompt"],
            "greedy": 1,
            "sampled": how.samples,
            "temperature": how.temperature,
            "max_tokens": how.max_tokens,
        },
        "seconds": seconds,
    }
    found = behaviour_report(asked.prompts, generated.pairs, assessments, about)
    report = (json.dumps(found.report, indent=1, allow_nan=False) + "\n").encode()
    written = output.write([(REPORT, report), (ANSWERS, found.answers)])
    if arguments.json:
        print(json.dumps(found.report, indent=1))
        return 0
    show_behaviour(found.report, Console(highlight=False))
    print(f"files: {', '.join(map(str, written))}")
    return 0


def _assess(asked: _Asked, generated: Generated, display: Display) -> list[Assessment]:
    """Each kind of evidence that was asked for."""
    found: list[Assessment] = []
    if asked.rule is not None:
        found.append(assess_by_rule(asked.rule, asked.rule_says, generated.pairs))
    if asked.labelled:
        from vectors.behaviour.classifier import assess_by_classifier

        name = Path(asked.arguments.classifier).name
        found.append(assess_by_classifier(asked.labelled, name, generated.pairs))
    if asked.arguments.judge is not None:
        from vectors.behaviour.judge import assess_by_judge

        with asked.judge() as judge:
            found.append(
                assess_by_judge(
                    asked.values["judge_form"],
                    asked.values["concept"],
                    asked.arguments.judge_model,
                    asked.prompts,
                    generated.pairs,
                    lambda questions: judge.ask_all(questions, display.report),
                    asked.seed,
                )
            )
    return found


def _check(arguments: argparse.Namespace) -> None:
    """Raise `CommandFailed` for what is missing or contradicts itself."""
    if arguments.url is None:
        raise CommandFailed(
            "--prompts needs a server that answers them: start tiller serve, and name its address with --url", USAGE
        )
    check_registered(arguments.vector)
    if not any((arguments.rule, arguments.words, arguments.classifier, arguments.judge)):
        raise CommandFailed("expected --rule, --words, --classifier or --judge, by which answers are judged", USAGE)
    if arguments.rule is not None and arguments.words is not None:
        raise CommandFailed("expected either --rule or --words, got both", USAGE)
    for option in ("judge_model", "concept"):
        if arguments.judge is not None and not getattr(arguments, option):
            raise CommandFailed(f"--judge needs --{option.replace('_', '-')}", USAGE)
    for option in ("judge_model", "judge_form", "judge_temperature", "concept"):
        if arguments.judge is None and getattr(arguments, option) is not None:
            raise CommandFailed(f"--{option.replace('_', '-')} applies to --judge", USAGE)
    for package in ("numpy", "scipy", "statsmodels"):
        if importlib.util.find_spec(package) is None:
            raise CommandFailed(
                f"the figures of a report need {package}, which is not installed: pip install numpy scipy statsmodels",
                FAILED,
            )


def _rule(arguments: argparse.Namespace) -> Any:
    """The rule and how it is called; None and "" without one."""
    if arguments.rule is not None:
        try:
            return expression_rule(arguments.rule), f"by a rule (the expression {arguments.rule!r})"
        except VectorsError as error:
            raise CommandFailed(f"--rule: {error}", USAGE) from None
    if arguments.words is None:
        return None, ""
    place = Path(arguments.words).expanduser()
    words = read_words(decode_text(read_file(place), place.name), place.name)
    return words_rule(words), f"by a rule (any of the {len(words)} words of {place.name})"


def _drawn(prompts: tuple[OpenPrompt, ...], most: int, seed: int) -> tuple[OpenPrompt, ...]:
    """At most `most` prompts, drawn by the seed and kept in their order."""
    import numpy as np

    order = np.random.default_rng(seed).permutation(len(prompts))[:most]
    return tuple(prompts[index] for index in sorted(order))


def _value(arguments: argparse.Namespace, name: str) -> Any:
    """The value of an option, or its default. Raises `CommandFailed`."""
    value, default = _VALUES[name]
    typed = getattr(arguments, name)
    if typed is None:
        return default
    try:
        return value.parse(value.parse_text(typed))
    except ValueError as error:
        raise CommandFailed(f"--{name.replace('_', '-')}: {error}", USAGE) from None


def _temperature(typed: str | None, flag: str, default: float) -> float:
    if typed is None:
        return default
    number = Number(0, _MAX_TEMPERATURE)
    try:
        return number.parse(number.parse_text(typed))
    except ValueError as error:
        raise CommandFailed(f"{flag}: {error}", USAGE) from None
