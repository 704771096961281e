"""What was typed after `tiller train`, `evaluate` or `sweep` -> the JSON of a task, as servers take it too.

It reads what each option's row of `vectors.training.options` can read, and refuses what contradicts itself; whether a
value makes sense is said by the same table later, here or on the server. It loads no torch.
"""

from __future__ import annotations

import argparse
from typing import Any

from server.cli.errors import USAGE, CommandFailed
from server.cli.training.parser import ENGINE_SETTINGS
from vectors.errors import InvalidVectorName
from vectors.training.options import OPTIONS, SEED, Option
from vectors.vocabulary import check_name

TASK_PREFIX = "task:"


def task_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The task as `Task.from_json` and `method.steering` of a job take it. Raises `CommandFailed`."""
    given: dict[str, Any] = {"task": arguments.command} if arguments.command != "train" else {}
    for option in OPTIONS:
        typed = getattr(arguments, option.name, None)
        if typed is not None:
            given[option.name] = typed if isinstance(typed, bool) else _json_of(option, typed)
    return given


def seed_of(arguments: argparse.Namespace) -> int:
    """The seed. Raises `CommandFailed`."""
    if arguments.seed is None:
        return int(SEED.default)
    try:
        seed: int = SEED.value.parse(_json_of(SEED, arguments.seed))
    except ValueError as error:
        raise CommandFailed(f"{SEED.flag}: {error}", USAGE) from None
    return seed


def check_consistent(arguments: argparse.Namespace) -> None:
    """Raise `CommandFailed` for options that do nothing beside the others, and for a name that no vector can have."""
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
                    f"{flag} is for a model that is loaded here; with --url the server's own is used", USAGE
                )
    data = [getattr(arguments, option, None) or "" for option in ("data", "validation", "retention")]
    if arguments.data_folder is not None and not any(place.startswith(TASK_PREFIX) for place in data):
        raise CommandFailed("--data-folder is where task:NAME is looked for, and no task is given", USAGE)


def _json_of(option: Option, text: str) -> Any:
    try:
        return option.value.parse_text(text)
    except ValueError as error:
        raise CommandFailed(f"{option.flag}: {error}", USAGE) from None
