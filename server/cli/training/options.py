"""Arguments of `tiller train`, `evaluate` or `sweep` -> the JSON of a task, the same as for servers.

Values are read by each option's row of `vectors.training.options`, and contradictions are rejected; the same table
validates values later, here or on the server. It loads no torch.
"""

from __future__ import annotations

import argparse
from typing import Any

from server.cli.errors import USAGE, CommandFailed
from server.cli.training.generated_options import GENERATED
from server.cli.training.parser import ENGINE_SETTINGS
from vectors.errors import InvalidVectorName
from vectors.training.options import OPTIONS, SEED, Option
from vectors.vocabulary import check_name

TASK_PREFIX = "task:"

_FOR_BOTH = ("scale", "prompt", "max_items")
"""Options of `evaluate` that apply to labelled data and to generated answers."""


def task_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The task as JSON for `Task.from_json` and a job's `method.steering`. Raises `CommandFailed`."""
    kind = "probe" if getattr(arguments, "kind", None) == "probe" else arguments.command
    given: dict[str, Any] = {"task": kind} if kind != "train" else {}
    for option in OPTIONS:
        typed = getattr(arguments, option.name, None)
        if typed is not None:
            given[option.name] = typed if isinstance(typed, bool) else _json_of(option, typed)
    return given


def seed_of(arguments: argparse.Namespace) -> int:
    """The seed. Raises `CommandFailed`."""
    return int(value_of(arguments, SEED))


def value_of(arguments: argparse.Namespace, option: Option) -> Any:
    """The value of an option, its default if it is not given. Raises `CommandFailed`."""
    typed = getattr(arguments, option.name)
    if typed is None:
        return option.default
    try:
        return option.value.parse(_json_of(option, typed))
    except ValueError as error:
        raise CommandFailed(f"{option.flag}: {error}", USAGE) from None


def check_consistent(arguments: argparse.Namespace) -> None:
    """Raise `CommandFailed` for options without effect next to the others, and for an invalid name."""
    name = getattr(arguments, "name", None)
    if name is not None:
        try:
            check_name(name)
        except InvalidVectorName as error:
            raise CommandFailed(f"--name: {error}", USAGE) from None
    if arguments.url is not None:
        for setting in ENGINE_SETTINGS:
            if getattr(arguments, setting) is not None:
                flag = "--" + setting.replace("_", "-")
                raise CommandFailed(
                    f"{flag} applies to a model loaded here; with --url, the server's model is used", USAGE
                )
    if arguments.command == "evaluate":
        _check_kind_of_evaluation(arguments)
    if getattr(arguments, "kind", None) == "probe" and arguments.retention is not None:
        raise CommandFailed("--retention applies to steering vectors; a probe changes nothing", USAGE)
    if arguments.negative is not None and any(
        place.startswith(TASK_PREFIX) for place in (arguments.data, arguments.negative)
    ):
        raise CommandFailed("--negative is a file that goes with a file, not with task:NAME", USAGE)
    data = [getattr(arguments, option, None) or "" for option in ("data", "validation", "retention")]
    if arguments.data_folder is not None and not any(place.startswith(TASK_PREFIX) for place in data):
        raise CommandFailed("--data-folder applies to task:NAME, and no task is given", USAGE)


def _check_kind_of_evaluation(arguments: argparse.Namespace) -> None:
    """Either labelled data or open-ended prompts, with the options of one of them. Raises `CommandFailed`."""
    if (arguments.data is None) == (arguments.prompts is None):
        raise CommandFailed("expected either DATA (labelled data) or --prompts (generated answers)", USAGE)
    if arguments.prompts is None:
        names = [option.name for option in GENERATED]
        applies = "applies to generated answers, with --prompts"
    else:
        flags = [option.name for option in OPTIONS if "evaluate" in option.uses and option.metavar is not None]
        names = [name for name in flags if name not in _FOR_BOTH] + ["negative", "retention", "data_folder"]
        applies = "applies to labelled data, not to generated answers"
    given = next((name for name in names if getattr(arguments, name) is not None), None)
    if given is not None:
        raise CommandFailed(f"--{given.replace('_', '-')} {applies}", USAGE)


def _json_of(option: Option, text: str) -> Any:
    try:
        return option.value.parse_text(text)
    except ValueError as error:
        raise CommandFailed(f"{option.flag}: {error}", USAGE) from None
