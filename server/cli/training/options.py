"""What was typed after `tiller train`, `evaluate` or `sweep` -> the JSON of a task, as servers take it too.

It reads lists and numbers, and refuses what contradicts itself; whether a value makes sense is said by
`vectors.training.method`, here or on the server. It loads nothing heavy.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable
from typing import Any

from server.cli.errors import USAGE, CommandFailed
from server.cli.training.parser import ENGINE_SETTINGS
from vectors.errors import InvalidLayers, InvalidVectorName
from vectors.vocabulary import MAX_SEED, check_name, parse_layers

TASK_PREFIX = "task:"


def task_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The task as `Task.from_json` and `method.steering` of a job take it. Raises `CommandFailed`."""
    given: dict[str, Any] = {"task": arguments.command} if arguments.command != "train" else {}
    for option, parse in _PARSERS.items():
        value = getattr(arguments, option, None)
        if value is not None:
            given[option] = parse(_flag(option), value)
    for switch in ("paper_offset", "relative_scales", "allow_no_gain"):
        value = getattr(arguments, switch, None)
        if value is not None and (value or switch == "paper_offset"):
            given[switch] = value
    if arguments.command == "evaluate":
        given["vector"] = arguments.vector
    return given


def seed_of(arguments: argparse.Namespace) -> int:
    """The seed. Raises `CommandFailed`."""
    seed = _whole("--seed", arguments.seed)
    if not 0 <= seed <= MAX_SEED:
        raise CommandFailed(f"--seed: give a whole number from 0 to {MAX_SEED}, not {arguments.seed!r}", USAGE)
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
                raise CommandFailed(
                    f"{_flag(setting)} is for a model that is loaded here; with --url the server's own is used", USAGE
                )
    data = [getattr(arguments, option, None) or "" for option in ("data", "validation", "retention")]
    if arguments.data_folder is not None and not any(place.startswith(TASK_PREFIX) for place in data):
        raise CommandFailed("--data-folder is where task:NAME is looked for, and no task is given", USAGE)


def _flag(option: str) -> str:
    return "--" + option.replace("_", "-")


def _refusal(flag: str, what: str, text: str) -> CommandFailed:
    return CommandFailed(f"{flag}: give {what}, not {text[:60]!r}", USAGE)


def _text(flag: str, text: str) -> str:
    return text


def _names(flag: str, text: str) -> str | list[str]:
    names = [name.strip() for name in text.split(",")]
    return names[0] if len(names) == 1 else names


def _layers(flag: str, text: str) -> str | list[int]:
    if text.strip() == "auto":
        return "auto"
    try:
        return list(parse_layers(text))
    except InvalidLayers as error:
        raise CommandFailed(f"{flag}: {error}, or auto", USAGE) from None


def _scales(flag: str, text: str) -> str | list[float]:
    return "auto" if text.strip() == "auto" else _numbers(flag, text, "numbers, as in 0.5,1,2, or auto")


def _split(flag: str, text: str) -> dict[str, float]:
    what = "three shares that sum to 1, as in 0.6,0.2,0.2"
    shares = _numbers(flag, text, what)
    if len(shares) != 3:
        raise _refusal(flag, what, text)
    return dict(zip(("train", "validation", "test"), shares, strict=True))


def _sizes(flag: str, text: str) -> list[int]:
    return [_whole(flag, size, "whole numbers of items, as in 12,50,200") for size in text.split(",")]


def _numbers(flag: str, text: str, what: str) -> list[float]:
    try:
        numbers = [float(number) for number in text.split(",")]
    except ValueError:
        numbers = [math.nan]
    if not all(math.isfinite(number) for number in numbers):  # which JSON cannot carry
        raise _refusal(flag, what, text)
    return numbers


def _scale(flag: str, text: str) -> float:
    (scale, *rest) = _numbers(flag, text, "a number")
    if rest:
        raise _refusal(flag, "a number", text)
    return scale


def _whole(flag: str, text: str, what: str = "a whole number") -> int:
    if re.fullmatch(r"\s*\d{1,12}\s*", text) is None:
        raise _refusal(flag, what, text)
    return int(text)


_PARSERS: dict[str, Callable[[str, str], Any]] = {
    "variant": _names,
    "site": _names,
    "layers": _layers,
    "scales": _scales,
    "split": _split,
    "prompt": _text,
    "letters": _text,
    "icl": _whole,
    "seeds": _whole,
    "max_items": _whole,
    "scale": _scale,
    "sizes": _sizes,
}
