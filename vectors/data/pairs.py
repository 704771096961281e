"""Pairs of texts from rows: preferences in any layout, and two classes of texts that are not paired in their file."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vectors.data.cells import from_text
from vectors.data.contrasts import are_replies, are_requests, class_name, class_of
from vectors.data.conversations import is_conversation, messages_of, reply_of
from vectors.data.items import Message, PairItem
from vectors.data.options import ReadOptions, Turn
from vectors.data.partners import Kin, couples_of, linked_groups
from vectors.data.row import Row, shown
from vectors.data.shapes import Fitted, plain_name
from vectors.errors import InvalidData

Prompt = str | tuple[Message, ...]

_REQUEST_FIELDS = {"instruction", "goal", "prompt", "behavior", "behaviour", "query", "request"}
_REPLY_FIELDS = {"output", "completion", "response", "answer", "reply", "generation"}


@dataclass(frozen=True, slots=True)
class ClassText:
    """A text and the class that it belongs to; `field` is where it was read."""

    row: Row
    text: str
    label: str
    prompt: Prompt
    field: str
    group: str | None


def pair_of(row: Row, fitted: Fitted, options: ReadOptions) -> PairItem:
    """The pair of a row. Raises `UnusableRow`, also for replies to different prompts."""
    names = fitted.one("positive"), fitted.one("negative")
    given = _prompt(row, fitted)
    (positive, before), (negative, other) = (reply_of(row, _value(row, name), name, given) for name in names)
    if before != other:
        raise row.unusable("the two replies follow different turns", "replies to different prompts")
    turn = None if before else options.turn or _turn_of_classes(*names)
    return _checked(row, PairItem(positive, negative, before, row.line, turn, group=row.group))


def class_text_of(row: Row, fitted: Fitted) -> ClassText:
    """The text of a row and its class. Raises `UnusableRow`."""
    name, label = fitted.one("text"), row.value(fitted.one("label"))
    if not isinstance(label, str | int | float) or not class_name(label):
        raise row.unusable(f"{fitted.one('label')}: expected the name of a class, got {shown(label)}")
    text, prompt = reply_of(row, _value(row, name), name, _prompt(row, fitted))
    return ClassText(row, text, class_name(label), prompt, plain_name(name), row.group)


def side_text_of(row: Row, fitted: Fitted, label: str | None = None) -> ClassText:
    """The text of a row that belongs to one class, `label`, or to the one that its field is named after."""
    name = fitted.one("side")
    text, prompt = reply_of(row, _value(row, name), name, _prompt(row, fitted))
    return ClassText(row, text, label or plain_name(name), prompt, plain_name(name), row.group)


def paired(
    texts: Sequence[ClassText], options: ReadOptions, file: str
) -> tuple[list[PairItem], dict[str, int], list[str]]:
    """Pairs of the wanted class with the other one, in the order of the file; the classes; sentences about them.

    Each text is used once, so what the larger class has beyond the smaller one is left out. Texts with the same prompt
    are paired first, then those of the same group; see `partners.py`. Raises `InvalidData` if it is not known which
    class is wanted.
    """
    by_class: dict[str, list[ClassText]] = defaultdict(list)
    for text in texts:
        by_class[text.label].append(text)
    wanted = _wanted(by_class, options, file)
    others = [text for text in texts if text.label != wanted]
    classes = {wanted: len(by_class[wanted])} | {name: len(found) for name, found in by_class.items() if name != wanted}
    notes = [f"the wanted class is {wanted!r}: each of its texts is paired with one of the others"]
    places = couples_of(_kin(by_class[wanted]), _kin(others))
    couples = [(by_class[wanted][one], others[other]) for one, other in places]
    left = abs(len(by_class[wanted]) - len(others))
    if left:
        notes.append(f"{left} texts of the larger class are left out, so that both have the same number")
    if alone := min(len(by_class[wanted]), len(others)) - len(couples):
        notes.append(f"{alone} texts of each class are left out, since pairing them would link further groups")
    pairs = []
    groups = linked_groups([(positive.group, negative.group) for positive, negative in couples])
    for (positive, negative), group in zip(couples, groups, strict=True):
        turn = None if positive.prompt or negative.prompt else options.turn or _turn_of_texts(positive, *by_class)
        before = None if negative.prompt == positive.prompt else negative.prompt
        if positive.text.strip() != negative.text.strip():
            pair = PairItem(positive.text, negative.text, positive.prompt, positive.row.line, turn, before, group)
            pairs.append(pair)
    return pairs, classes, notes


def _kin(texts: Sequence[ClassText]) -> list[Kin]:
    return [Kin(text.prompt, text.group) for text in texts]


def _wanted(by_class: Mapping[str, Sequence[ClassText]], options: ReadOptions, file: str) -> str:
    names = list(by_class)
    listed = ", ".join(f"{name[:40]!r} ({len(by_class[name])})" for name in names[:8])
    if len(names) < 2:
        raise InvalidData(
            f"expected texts of two classes, got one: {listed}; give the texts of the other class as a second file: "
            "--negative FILE (negative_file)",
            file,
        )
    if options.positive_class is not None:
        if options.positive_class not in names:
            raise InvalidData(f"positive_class: expected one of {listed}, got {options.positive_class[:60]!r}", file)
        return options.positive_class
    wanted = class_of(*names) if len(names) == 2 else None
    if wanted is None:
        what = "two classes" if len(names) == 2 else f"{len(names)} classes"
        raise InvalidData(
            f"the texts have {what}: {listed}; say which one is wanted with --positive-class NAME (positive_class)",
            file,
        )
    return wanted


def _turn_of_texts(text: ClassText, *classes: str) -> Turn | None:
    if text.field in _REQUEST_FIELDS:
        return "user"
    if text.field in _REPLY_FIELDS:
        return "assistant"
    return _turn_of_classes(*classes)


def _turn_of_classes(*classes: str) -> Turn | None:
    return "user" if are_requests(*classes) else "assistant" if are_replies(*classes) else None


def _value(row: Row, name: str) -> Any:
    """A field that is text or a conversation, perhaps as JSON in a cell."""
    value = row.value(name)
    if isinstance(value, str) and row.format == "csv" and is_conversation(found := from_text(value)):
        return found
    return value


def _prompt(row: Row, fitted: Fitted) -> Prompt:
    system = row.optional_text(fitted.one("system")) if "system" in fitted.fields else None
    if "prompt" not in fitted.fields:
        prompt: Prompt = ""
    else:
        name = fitted.one("prompt")
        value = row.fields.get(name)
        if isinstance(value, str) and is_conversation(found := from_text(value)):
            value = found
        if isinstance(value, str | None) and not is_conversation(value):
            prompt = row.optional_text(name) or ""
        else:
            prompt = messages_of(row, value, name)
    if system is None or not prompt:
        return prompt
    turns = (Message("user", prompt),) if isinstance(prompt, str) else prompt
    return (Message("system", system), *turns)


def _checked(row: Row, pair: PairItem) -> PairItem:
    if pair.positive.strip() == pair.negative.strip():
        raise row.unusable("the two texts of the pair are the same", "texts that are the same")
    return pair
