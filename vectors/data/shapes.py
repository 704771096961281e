"""Shapes: what the rows of published data sets and of people's own files look like, as a table.

A row has fields, a field has a role (the question, the options, …), and the names that fields of a role have are its
aliases. A shape is the roles that a kind of row needs. Case, spaces, `-` and `_` in names do not count. A row that fits
several shapes is read by the one that uses most of its fields; if none uses all that the others use, it is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from vectors.data.contrasts import class_of, is_class_name
from vectors.data.row import Row

Kind = Literal["choice", "pair", "class", "one side", "text"]

Names = tuple[str, ...]
"""The fields of a role; one, unless it is options or wrong answers in fields of their own."""

_ALIASES: Mapping[str, str] = {
    "question": "question question_stem stem query problem prompt ctx goal sentence startphrase sent1 input "
    "instruction text premise statement",
    "asked": "question query problem",
    "passage": "passage article paragraph story context premise",
    "choices": "choices options endings classes candidates answer_choices alternatives answers",
    "scored": "target_scores mc1_targets mc2_targets",
    "answer": "answer_index answer_idx correct_index correct_idx gold_index label_idx answer answer_key "
    "correct_answer correct_option correct_choice right_answer correct gold label target answer_id "
    "correct_answer_id cop ground_truth",
    "verdict": "answer label",
    "correct": "answer_matching_behavior correct_answer best_answer right_answer true_answer correct right",
    "incorrect": "answer_not_matching_behavior best_incorrect_answer incorrect_answers wrong_answers distractors "
    "incorrect_answer wrong_answer incorrect wrong",
    "prompt": "prompt input question instruction query conversations conversation messages goal",
    "system": "system system_prompt",
    "text": "text sentence statement content review tweet comment claim",
    "reply": "output completion response answer reply generation",
    "request": "instruction goal prompt behavior behaviour query request input question",
    "label": "label labels sentiment class is_true truth is_correct toxic is_toxic harmful is_harmful category target",
}
"""The names that a field of a role may have, in order of preference."""

_STRONG_LABELS = {"label", "labels", "sentiment"}
"""Fields that hold a class whatever is in them; others only with the name of a known class or a truth value."""

_MOST_COMPARED = 12
_STEMS = (
    "choice", "option", "opt", "ending", "solution", "sol", "answer", "ans", "op", "candidate", "alternative",
    "hypothesis", "hyp", "",
)  # fmt: skip
_WRONG_STEMS = ("distractor", "incorrectanswer", "wronganswer", "incorrect", "wrong")
_NUMBERED = re.compile(r"([a-z]*?)([0-9]{1,2}|[a-z])")

PAIRS: tuple[tuple[str, str], ...] = (
    ("positive", "negative"),
    ("chosen", "rejected"),
    ("preferred_output", "non_preferred_output"),
    ("preferred", "rejected"),
    ("preferred", "dispreferred"),
    ("preferred", "non_preferred"),
    ("accepted", "rejected"),
    ("chosen_response", "rejected_response"),
    ("response_chosen", "response_rejected"),
    ("pos", "neg"),
    ("good", "bad"),
    ("better", "worse"),
)
"""Fields that hold the wanted and the other text of a pair."""

UNDIRECTED = (("sent_more", "sent_less"), ("response_0", "response_1"), ("response_a", "response_b"))
"""Fields that hold two texts, of which only the user can say which one is wanted."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A kind of row: the roles that it needs and those that it may have besides."""

    name: str
    kind: Kind
    needs: tuple[str, ...]
    may: tuple[str, ...] = ()


LISTED = Shape("multiple choice", "choice", ("question", "choices", "answer"), ("passage", "context"))
IN_FIELDS = Shape("multiple choice, an option in each field", "choice", ("question", "options", "answer"), LISTED.may)
SCORED = Shape("multiple choice, options with scores", "choice", ("question", "scored"), ("passage",))
RIGHT_WRONG = Shape("a right answer and wrong ones", "choice", ("question", "correct", "incorrect"), ("passage",))
YES_NO = Shape("a question with yes or no", "choice", ("question", "verdict"), ("passage",))
PAIR = Shape("a pair of texts", "pair", ("positive", "negative"), ("prompt", "system"))
CONTRAST = Shape("a pair of texts, each in the field of its class", "pair", PAIR.needs, ("prompt",))
CLASSES = Shape("texts with a class", "class", ("text", "label"), ("prompt",))
ONE_SIDE = Shape("texts of one side", "one side", ("side",), ("prompt",))
TEXT = Shape("plain text", "text", ("text",))

SHAPES = (LISTED, IN_FIELDS, SCORED, RIGHT_WRONG, PAIR)
_FALLBACKS = (YES_NO, CLASSES, CONTRAST, ONE_SIDE)
"""Tried, in order, on rows that have none of the shapes above."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """A shape and, by role, the fields of a row that fill it."""

    shape: Shape
    fields: Mapping[str, Names]

    def one(self, role: str) -> str:
        """The field of a role that has one."""
        return self.fields[role][0]

    @property
    def used(self) -> frozenset[str]:
        """All fields that are read."""
        return frozenset(name for names in self.fields.values() for name in names)

    def described(self) -> dict[str, str]:
        """The fields by role, for people."""
        return {role: "+".join(names) for role, names in self.fields.items()}


def plain_name(name: str) -> str:
    """A field's name without what does not count: `Correct Answer` and `correct_answer` are the same."""
    return re.sub(r"[\s_\-]+", "", name).lower()


_KNOWN_NAMES = frozenset(
    plain_name(name)
    for name in (
        *(alias for aliases in _ALIASES.values() for alias in aliases.split()),
        *(name for couple in (*PAIRS, *UNDIRECTED) for name in couple),
        *("group", "row"),
    )
)
"""The names of fields with a role, and of what rows have besides."""


def may_have_role(name: str, names: Sequence[str]) -> bool:
    """False for a column of a file with columns `names` that no row of any shape needs."""
    plain = plain_name(name)
    match = _NUMBERED.fullmatch(plain)
    if match is not None and (match[1] or match[2].isalpha()) and match[1] in (*_STEMS, *_WRONG_STEMS):
        return True
    return (
        plain in _KNOWN_NAMES
        or plain.endswith("label")
        or any(class_of(name, other) is not None for other in names[: 2 * _MOST_COMPARED] if other != name)
    )


def fit(row: Row, given: Mapping[str, Names], *, texts: bool = False) -> Fitted:
    """The shape of a row. `given` are roles that the user has assigned; `texts`: plain texts are expected too.

    Raises `InvalidData` naming the possible readings where there are several, or what the nearest one lacks.
    """
    for names in given.values():
        for name in names:
            if name not in row.fields:
                raise row.error(f"map: the file has no field {name[:60]!r}; it has {_listed(row.fields)}")
    found = _maximal([fitted for shape in SHAPES if (fitted := _fitted(shape, row.fields, given))])
    if not found and texts and "text" in row.fields and not given:
        return Fitted(TEXT, {"text": ("text",)})
    for shape in () if found else _FALLBACKS:
        if fitted := _fitted(shape, row.fields, given):
            found = [fitted]
            break
    if len(found) == 1:
        return found[0]
    if found:
        readings = " or ".join(_reading(fitted) for fitted in found)
        raise row.error(f"the fields match several kinds of row; say which one with {readings}")
    raise row.error(_unknown(row.fields, given, texts))


def is_known(fields: Mapping[str, Any]) -> bool:
    """True if a row with these fields, whatever they hold, has a shape."""
    return any(_fitted(shape, fields, {}) for shape in (*SHAPES, *_FALLBACKS)) or "text" in fields


def side_fields(fields: Mapping[str, Any], given: Mapping[str, Names]) -> Fitted | None:
    """The field with the text of a row in a file that holds one class only."""
    name = given["text"][0] if "text" in given else _first("request", fields, ()) or _first("text", fields, ())
    if name is None:
        name = _first("reply", fields, ())
    return None if name is None else Fitted(ONE_SIDE, {"side": (name,)})


def option_marks(names: Names) -> tuple[str, list[str]]:
    """The stem that fields with an option each have, and the letter (a capital) or number of each."""
    found = [_NUMBERED.fullmatch(plain_name(name)) for name in names]
    parts = [(match[1], match[2].upper()) for match in found if match is not None]
    return parts[0][0] if parts else "", [mark for _, mark in parts]


def _fitted(shape: Shape, fields: Mapping[str, Any], given: Mapping[str, Names]) -> Fitted | None:
    """The shape filled with a row's fields; None if a role is missing or one that was given has no place in it."""
    roles = _renamed(shape, given)
    if roles is None:
        return None
    for role in (*shape.needs, *shape.may):
        if role not in roles:
            names = _find(role, shape, fields, tuple(name for taken in roles.values() for name in taken))
            if names:
                roles[role] = names
            elif role in shape.needs:
                return None
    _tell_context(shape, roles, fields, given)
    return Fitted(shape, roles)


def _renamed(shape: Shape, given: Mapping[str, Names]) -> dict[str, Names] | None:
    """The given roles as the shape calls them; None if it has no such role."""
    roles: dict[str, Names] = {}
    for role, names in given.items():
        own = role
        if role == "choices" and "options" in shape.needs and len(names) > 1:
            own = "options"
        elif role == "answer" and "verdict" in shape.needs:
            own = "verdict"
        elif role == "choices" and "scored" in shape.needs and len(names) == 1:
            own = "scored"
        elif role == "choices" and len(names) > 1:
            return None
        elif role == "text" and "side" in shape.needs:
            own = "side"
        if own not in (*shape.needs, *shape.may):
            return None
        roles[own] = names
    return roles


def _find(role: str, shape: Shape, fields: Mapping[str, Any], taken: Sequence[str]) -> Names:
    if role == "options":
        return next(_families(fields, _STEMS), ())
    if role in ("positive", "negative"):
        names = _of_classes(fields) if shape is CONTRAST else _of_pair(fields)
        return () if names is None else (names[0 if role == "positive" else 1],)
    if role == "label":
        return _label(fields, taken)
    if role == "side":
        sides = [name for name in fields if plain_name(name) in ("positive", "negative")]
        return (
            (sides[0],)
            if len(sides) == 1 and set(map(plain_name, fields)) <= {"positive", "negative", "prompt"}
            else ()
        )
    if role == "verdict":
        name = _first("verdict", fields, taken)
        is_verdict = name is not None and _is_verdict(
            fields[name], has_passage=_first("passage", fields, taken) is not None
        )
        return (name,) if name is not None and is_verdict else ()
    if role == "context":
        return ()
    if role == "text":
        reply, request = _first("reply", fields, taken), _first("request", fields, taken)
        plain = _first("text", fields, taken)
        name = plain or reply or request
        return () if name is None else (name,)
    if role == "prompt" and shape is CLASSES:
        name = _first("request", fields, taken) if any(plain_name(text) in _words("reply") for text in taken) else None
        return () if name is None else (name,)
    name = _first("asked" if role == "question" and shape is YES_NO else role, fields, taken)
    if name is None and role == "incorrect":
        return next(_families(fields, _WRONG_STEMS), ())
    if name is not None and role in ("choices", "scored") and not _holds_options(fields[name]):
        return ()
    return () if name is None else (name,)


def _tell_context(shape: Shape, roles: dict[str, Names], fields: Mapping[str, Any], given: Mapping[str, Names]) -> None:
    """Take `context` for what a prompt asks to remember in this project's own rows; elsewhere it is a passage."""
    if "context" not in shape.may or "context" in given or "passage" in given or "context" not in fields:
        return
    own = roles["answer"] == ("answer",) and (
        roles.get("choices") == ("choices",)
        or ("options" in roles and option_marks(roles["options"])[0] in ("", "choice"))
    )
    if own:
        roles["context"] = ("context",)
        if roles.get("passage") == ("context",):
            del roles["passage"]


def _of_pair(fields: Mapping[str, Any]) -> tuple[str, str] | None:
    plain = {plain_name(name): name for name in fields}
    for couple in PAIRS:
        one, other = (plain.get(plain_name(name)) for name in couple)
        if one is not None and other is not None:
            return one, other
    return None


def _of_classes(fields: Mapping[str, Any]) -> tuple[str, str] | None:
    """Two fields of text that are named like a class and its opposite."""
    texts = [name for name, value in fields.items() if isinstance(value, str)]
    for name in texts[:_MOST_COMPARED]:
        for other in texts[:_MOST_COMPARED]:
            if name != other and class_of(name, other) == name:
                return name, other
    return None


def _label(fields: Mapping[str, Any], taken: Sequence[str]) -> Names:
    names = [name for name in _all("label", fields, taken) if _is_label(name, fields[name])]
    if not names:
        names = [name for name in fields if plain_name(name).endswith("label") and name not in taken]
    return (names[0],) if names else ()


def _is_label(name: str, value: object) -> bool:
    if plain_name(name) in _STRONG_LABELS:
        return isinstance(value, str | int | float)
    return isinstance(value, bool) or value in (0, 1, -1) or (isinstance(value, str) and is_class_name(value))


def labels_of(fields: Mapping[str, Any]) -> list[str]:
    """Every field that ends with `label`, for rows that have several of them and none with just that name."""
    return [name for name in fields if plain_name(name).endswith("label")]


def _families(fields: Mapping[str, Any], stems: Sequence[str]) -> Iterator[Names]:
    """Fields that differ in a number or a letter only, in its order, from 0, 1 or A on."""
    by_stem: dict[str, dict[str, str]] = {}
    for name in fields:
        match = _NUMBERED.fullmatch(plain_name(name))
        if match is not None and (match[1] or match[2].isalpha()):
            by_stem.setdefault(match[1], {})[match[2]] = name
    for stem in stems:
        found = by_stem.get(stem, {})
        for first in ("0", "1", "a"):
            if first in found and chr(ord(first) + 1) in found:
                marks = [mark for mark in found if mark.isdigit() == first.isdigit()]
                yield tuple(found[mark] for mark in sorted(marks, key=lambda mark: (len(mark), mark)))


def _first(role: str, fields: Mapping[str, Any], taken: Sequence[str]) -> str | None:
    return next(_all(role, fields, taken), None)


def _all(role: str, fields: Mapping[str, Any], taken: Sequence[str]) -> Iterator[str]:
    plain = {plain_name(name): name for name in fields if name not in taken}
    for alias in _words(role):
        if alias in plain:
            yield plain[alias]


def _words(role: str) -> list[str]:
    return [plain_name(alias) for alias in _ALIASES[role].split()]


def _holds_options(value: object) -> bool:
    """True for a list or an object, or for text, in which a CSV may have either."""
    return isinstance(value, list | dict | str)


def _is_verdict(value: object, *, has_passage: bool) -> bool:
    if isinstance(value, bool):
        return True
    if isinstance(value, str):
        return value.strip().lower() in ("true", "false", "yes", "no", *(("0", "1") if has_passage else ()))
    return has_passage and value in (0, 1)


def _maximal(found: Sequence[Fitted]) -> list[Fitted]:
    """Without those whose fields another one uses too; of two with the same fields, the first of the table stays."""
    return [
        fitted
        for place, fitted in enumerate(found)
        if not any(
            fitted.used < other.used or (fitted.used == other.used and number < place)
            for number, other in enumerate(found)
        )
    ]


def _reading(fitted: Fitted) -> str:
    own = {"options": "choices", "scored": "choices", "verdict": "answer", "side": "text"}
    pairs = ",".join(f"{own.get(role, role)}={name}" for role, name in fitted.described().items())
    return f"--map {pairs} ({fitted.shape.name})"


def _unknown(fields: Mapping[str, Any], given: Mapping[str, Names], texts: bool) -> str:
    """Why a row has no shape: what the nearest shapes lack, and how to name fields."""
    problem = f"the fields match no known kind of row: got {_listed(fields)}"
    plain = {plain_name(name): name for name in fields}
    for couple in UNDIRECTED:
        texts_found = [plain[plain_name(name)] for name in couple if plain_name(name) in plain]
        if len(texts_found) == len(couple):
            ways = " or ".join(
                f"--map positive={one},negative={other}" for one, other in (texts_found, texts_found[::-1])
            )
            return f"{problem}; two texts, of which it is not said which one is wanted: {ways}"
    lacking = []
    for shape in (*SHAPES, CLASSES):
        roles = _renamed(shape, given)
        if roles is not None:
            missing = [role for role in shape.needs if role not in roles and not _find(role, shape, fields, ())]
            if len(missing) < len(shape.needs):
                names = ", ".join(repr(_EXAMPLES.get(role, role)) for role in missing)
                lacking.append((len(missing), f"as {shape.name}, {names} is missing"))
    if side_fields(fields, {}) is not None and "answer" not in plain:
        lacking.append(
            (1, "as texts of one class, those of the other class are missing: give them with --negative FILE")
        )
    fewest = min((number for number, _ in lacking), default=0)
    nearest = "".join(f"; {what}" for number, what in lacking if number == fewest)
    known = "; ".join(", ".join(_EXAMPLES.get(role, role) for role in shape.needs) for shape in (*SHAPES, CLASSES))
    return (
        f"{problem}{nearest}; known kinds are {known}{'; text' if texts else ''}; "
        "name other fields with --map, as in --map question=stem,choices=options,answer=key"
    )


_EXAMPLES = {
    "options": "A, B, …",
    "scored": "target_scores",
    "correct": "correct_answer",
    "incorrect": "incorrect_answers",
}
"""A field's name for each role that is not itself one."""


def _listed(fields: Mapping[str, Any]) -> str:
    return ", ".join(name[:40] for name in list(fields)[:12]) or "none"
