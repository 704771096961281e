"""`tiller evaluate VECTOR --prompts FILE`: what a running server writes with and without a vector, and what judges say.

Everything but the answers happens here, so no server ever fetches an address that a client names.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import re
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
from server.cli.training.generated_options import (
    CONCEPT,
    JUDGE_FORM,
    JUDGE_MODEL,
    JUDGE_TEMPERATURE,
    MAX_TOKENS,
    ONLY_FOR_JUDGES,
    SAMPLES,
    TEMPERATURE,
    UNSET,
)
from server.cli.training.generation import Generated, Generation, answer_prompts
from server.cli.training.judging import Judge
from server.cli.training.options import seed_of, value_of
from server.cli.training.progress import Display, display_progress
from server.cli.training.remote import base_model, check_registered
from server.keys import JUDGE_VARIABLE
from vectors.behaviour.answers import Assessment
from vectors.behaviour.prompts import OpenPrompt, read_prompts
from vectors.behaviour.rule import assess_by_rule, expression_rule, read_words, words_rule
from vectors.data.rows import decode_text
from vectors.errors import VectorsError
from vectors.training.options import OPTIONS

if TYPE_CHECKING:
    from vectors.behaviour.classifier import LabelledText

_ROWS = {option.name: option for option in OPTIONS}


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
        self.seed = seed_of(arguments)
        self.samples: int = value_of(arguments, SAMPLES)
        self.temperature: float = value_of(arguments, TEMPERATURE)
        self.max_tokens: int = value_of(arguments, MAX_TOKENS)
        self.prompt_kind = "chat" if arguments.prompt is None else value_of(arguments, _ROWS["prompt"])
        self.judge_form = value_of(arguments, JUDGE_FORM)
        # read now, so that a wrong one is known before anything is sent
        unset = arguments.judge_temperature == UNSET
        self.judge_temperature: float | None = None if unset else value_of(arguments, JUDGE_TEMPERATURE)
        self.entry: dict[str, Any] = {"vector": arguments.vector}
        if arguments.scale is not None:
            self.entry["scale"] = value_of(arguments, _ROWS["scale"])
        path = Path(arguments.prompts).expanduser()
        content = read_file(path)
        self.prompts_name, self.sha256 = path.name, hashlib.sha256(content).hexdigest()
        self.prompts = _drawn(read_prompts(content, path.name), value_of(arguments, _ROWS["max_items"]), self.seed)
        if self.prompt_kind == "raw":
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
        key = self.environ.get(JUDGE_VARIABLE) or None
        return Judge(self.arguments.judge, self.arguments.judge_model, key, self.judge_temperature)


def _evaluate(asked: _Asked, output: OutputFolder) -> int:
    from vectors.behaviour.report import behaviour_report

    arguments, seconds = asked.arguments, {}
    if arguments.judge is not None:
        with asked.judge() as judge:
            judge.try_out()  # not after all answers are there
    with connect(ServerClient, arguments, asked.environ) as client, display_progress() as display:
        how = Generation(
            model=base_model(client),
            entry=asked.entry,
            samples=asked.samples,
            temperature=asked.temperature,
            max_tokens=asked.max_tokens,
            seed=asked.seed,
            is_raw=asked.prompt_kind == "raw",
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
            "prompt": asked.prompt_kind,
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
                    asked.judge_form,
                    asked.arguments.concept,
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
    for option in (JUDGE_MODEL, CONCEPT):
        if arguments.judge is not None and not getattr(arguments, option.name):
            raise CommandFailed(f"--judge needs {option.flag}", USAGE)
    for option in ONLY_FOR_JUDGES:
        if arguments.judge is None and getattr(arguments, option.name) is not None:
            raise CommandFailed(f"{option.flag} applies to --judge", USAGE)
    for package in ("numpy", "scipy", "statsmodels"):
        if importlib.util.find_spec(package) is None:
            raise CommandFailed(
                f"the figures of a report need {package}, which is not installed: pip install numpy scipy statsmodels",
                FAILED,
            )


def _rule(arguments: argparse.Namespace) -> tuple[re.Pattern[str] | None, str]:
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
