"""Study: the paper's comparison as one file - tasks × variants × sites × exemplars × seeds, for several adapters.

A study's YAML has the fields of `Study`. An error names the field that is wrong.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn, Self

from vectors.data.tasks import TASKS
from vectors.errors import InvalidMethod, MissingDependency
from vectors.training.method import Method
from vectors.training.options import METHOD_OPTIONS, SEED, Variant, read_options
from vectors.training.values import Value
from vectors.vocabulary import DEFAULT_SITE, Site

MAX_BYTES = 2**20
"""The most bytes of a study's text in UTF-8."""

MAX_TASKS = 200
MAX_ADAPTERS = 32
MAX_VALUES = 100
"""The most entries in a list of seeds or of numbers of exemplars."""

OWN_CATEGORY = "own"
"""The category of your own task, unless it names one."""

PAPER_VARIANTS: tuple[Variant, ...] = ("pas_full", "ipas_all", "ipas_wrong_only")

_TASK_NAME = re.compile(r"[a-z0-9][a-z0-9._/-]{0,79}")
_FIELDS = (
    "name", "model", "adapter", "tasks", "data_folder", "variants", "sites", "seeds", "icl", "method", "retention"
)  # fmt: skip
_OWN_TASK_FIELDS = ("name", "file", "category", "attribute")
_NOT_SHARED = {"variant": "variants", "site": "sites", "icl": "icl", "seeds": "seeds"}
"""Options of a method that are fields of the study itself."""

_VALUES: Mapping[str, Value] = {option.name: option.value for option in METHOD_OPTIONS}


@dataclass(frozen=True, slots=True)
class StudyTask:
    """A task of a study: a built-in one by name, or `file`, a file of labelled data.

    Means are taken over each `category`; `attribute` is the task's name in tables.
    """

    name: str
    category: str
    attribute: str
    file: str | None = None


@dataclass(frozen=True, slots=True)
class ModelCase:
    """One model of a study: a hub id or a folder (None: the embedded one), with or without an adapter.

    `dtype` as requested, since results depend on the precision.
    """

    model: str | None = None
    adapter: str | None = None
    dtype: str = "auto"

    @property
    def label(self) -> str:
        """Its name in tables and messages."""
        name = self.model or "the embedded model"
        return f"{name} + {self.adapter}" if self.adapter else name


@dataclass(frozen=True, slots=True, order=True)
class StudyCell:
    """One result of a study on one model: `icl` exemplars before every prompt, and the split's seed."""

    task: str
    variant: Variant
    site: Site
    icl: int
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """What is compared.

    `method` is shared by all cells; its own variants, sites, exemplars and seeds are not used. `retention`: a built-in
    task or a file of questions, which are also asked under every chosen steering. `adapters` are folders or hub ids;
    None is the model without one.
    """

    name: str
    tasks: tuple[StudyTask, ...]
    model: str | None = None
    adapters: tuple[str | None, ...] = (None,)
    data_folder: str | None = None
    variants: tuple[Variant, ...] = PAPER_VARIANTS
    sites: tuple[Site, ...] = (DEFAULT_SITE,)
    seeds: tuple[int, ...] = (0,)
    icl: tuple[int, ...] = (0,)
    method: Method = field(default_factory=Method)
    retention: str | None = None

    @classmethod
    def from_yaml(cls, text: str, *, other_tasks: Mapping[str, str] | None = None) -> Self:
        """A study from its file's text; `other_tasks` are names beyond `TASKS` with their categories.

        Raises `InvalidMethod` naming the field, also for a text above `MAX_BYTES`, for fields given twice and for
        aliases; `MissingDependency` without PyYAML.
        """
        given = _load_yaml(text)
        if not isinstance(given, dict):
            raise InvalidMethod(f"expected a study's fields ({', '.join(_FIELDS)}), got {type(given).__name__}")
        _check_names(given, _FIELDS, "")
        for name in ("name", "tasks"):
            if given.get(name) is None:
                raise InvalidMethod(f"{name}: required field is missing", name)
        known = {name: str(task.category) for name, task in TASKS.items()} | dict(other_tasks or {})
        parsers: dict[str, tuple[str, Any]] = {
            "name": ("name", _text),
            "model": ("model", _text),
            "adapter": ("adapters", _adapters),
            "tasks": ("tasks", lambda option, value: _tasks(option, value, known)),
            "data_folder": ("data_folder", _text),
            "variants": ("variants", lambda option, value: _by(_VALUES["variant"], option, value)),
            "sites": ("sites", lambda option, value: _by(_VALUES["site"], option, value)),
            "seeds": ("seeds", _seeds),
            "icl": ("icl", _exemplars),
            "method": ("method", _method),
            "retention": ("retention", _text),
        }
        values: dict[str, Any] = {}
        for option, value in given.items():
            if value is not None:
                name, parse = parsers[option]
                try:
                    values[name] = parse(option, value)
                except ValueError as error:  # a whole number with more digits than Python prints
                    raise InvalidMethod(f"{option}: {error}", option) from None
        return cls(**values)

    def to_json(self) -> dict[str, Any]:
        """The study as tables show it."""
        shared = {name: value for name, value in self.method.to_json().items() if name not in _NOT_SHARED}
        return {
            "name": self.name,
            "model": self.model,
            "adapter": list(self.adapters),
            "tasks": [{"name": task.name, "category": task.category, "file": task.file} for task in self.tasks],
            "variants": list(self.variants),
            "sites": list(self.sites),
            "seeds": list(self.seeds),
            "icl": list(self.icl),
            "method": shared,
            "retention": self.retention,
        }

    def cases(self, dtype: str = "auto") -> tuple[ModelCase, ...]:
        """The models, one for each adapter."""
        return tuple(ModelCase(self.model, adapter, dtype) for adapter in self.adapters)

    def cells(self) -> tuple[StudyCell, ...]:
        """Every cell on one model, one whole seed after the other, so that an unfinished study is an even sample."""
        return tuple(
            StudyCell(task.name, variant, site, icl, seed)
            for seed, icl, task, variant, site in itertools.product(
                self.seeds, self.icl, self.tasks, self.variants, self.sites
            )
        )

    def method_of(
        self, *, variants: Sequence[Variant], sites: Sequence[Site], icl: int, layers: tuple[int, ...] | None = None
    ) -> Method:
        """The method that searches these variants and sites; `layers` in place of the study's own, if given."""
        return replace(
            self.method,
            variants=tuple(variants),
            sites=tuple(sites),
            icl=icl,
            seeds=1,
            layers=self.method.layers if layers is None else layers,
        )


def _load_yaml(text: str) -> Any:
    """The values of a YAML text. Aliases (a few can expand to billions of values) and duplicate names are rejected."""
    try:
        import yaml
    except ImportError:
        raise MissingDependency("studies need PyYAML: pip install 'tiller[train]'") from None
    if len(text.encode(errors="replace")) > MAX_BYTES:
        raise InvalidMethod(f"the study is larger than {MAX_BYTES} bytes")

    class Loader(yaml.SafeLoader):
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.events.AliasEvent):
                line = self.line + 1
                raise yaml.YAMLError(f"line {line}: aliases (*name) are not supported")
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            names = [str(key.value) for key, _ in node.value]
            double = next((name for name in names if names.count(name) > 1), None)
            if double is not None:
                raise yaml.YAMLError(f"line {node.start_mark.line + 1}: {double[:60]} is given twice")
            return super().construct_mapping(node, deep)

    try:
        return yaml.load(text, Loader=Loader)
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())[:300]
        raise InvalidMethod(f"the study is not valid YAML: {reason}") from None


def _check_names(given: Mapping[Any, Any], known: Sequence[str], place: str) -> None:
    for name in given:
        if not isinstance(name, str) or name not in known:
            shown = f"{place}{str(name)[:60]}"
            hint = "; use one study file per model" if shown == "models" else ""
            raise InvalidMethod(f"{shown}: unknown field, expected one of {', '.join(known)}{hint}", shown)


def _refuse(option: str, what: str, value: object) -> NoReturn:
    raise InvalidMethod(f"{option}: expected {what}, got {value!r:.60}", option)


def _text(option: str, value: object) -> str:
    if not isinstance(value, str) or not value.strip() or len(value) > 1000 or not value.isprintable():
        _refuse(option, "a line of text", value)
    return value.strip()


def _listed(option: str, value: object, most: int) -> list[Any]:
    """A list; a single value stands for a list of one."""
    found = value if isinstance(value, list) else [value]
    if not 0 < len(found) <= most:
        _refuse(option, f"1 to {most} values", value)
    return found


def _check_once(option: str, values: Iterable[object]) -> None:
    seen: set[object] = set()
    for value in values:
        if value in seen:
            raise InvalidMethod(f"{option}: expected each value once, got {value} twice", option)
        seen.add(value)


def _adapters(option: str, value: object) -> tuple[str | None, ...]:
    found = tuple(None if name is None else _text(option, name) for name in _listed(option, value, MAX_ADAPTERS))
    _check_once(option, found)
    return found


def _tasks(option: str, value: object, known: Mapping[str, str]) -> tuple[StudyTask, ...]:
    found = tuple(
        _task(f"{option}[{place}]", task, known) for place, task in enumerate(_listed(option, value, MAX_TASKS))
    )
    _check_once(option, (task.name for task in found))
    return found


def _task(option: str, value: object, known: Mapping[str, str]) -> StudyTask:
    if isinstance(value, str):
        if value not in known:
            shown = ", ".join(name for name in known if not name.startswith("mmlu/"))
            raise InvalidMethod(f"{option}: expected one of {shown}, mmlu/SUBJECT, got {value[:60]!r}", option)
        return StudyTask(value, known[value], value)
    if not isinstance(value, dict):
        _refuse(option, f"the name of a task, or the fields {', '.join(_OWN_TASK_FIELDS)} of one of your own", value)
    _check_names(value, _OWN_TASK_FIELDS, f"{option}.")
    for needed in ("name", "file"):
        if value.get(needed) is None:
            raise InvalidMethod(f"{option}.{needed}: required field is missing", f"{option}.{needed}")
    fields = {part: _text(f"{option}.{part}", text) for part, text in value.items() if text is not None}
    name = fields["name"]
    if not _TASK_NAME.fullmatch(name):
        _refuse(f"{option}.name", "at most 80 lower-case letters, digits, '.', '_', '/' and '-'", name)
    if name in known:
        raise InvalidMethod(f"{option}.name: {name} is a built-in task; choose another name", f"{option}.name")
    return StudyTask(name, fields.get("category", OWN_CATEGORY), fields.get("attribute", name), fields["file"])


def _seeds(option: str, value: object) -> tuple[int, ...]:
    if isinstance(value, list):
        return _listed_once(option, SEED.value, value)
    how_many = _VALUES["seeds"]
    try:
        return tuple(range(how_many.parse(value)))
    except ValueError:
        _refuse(option, f"{how_many.expected} (how many), or a list of seeds", value)


def _exemplars(option: str, value: object) -> tuple[int, ...]:
    return _listed_once(option, _VALUES["icl"], value)


def _listed_once(option: str, kind: Value, value: object) -> tuple[Any, ...]:
    found = [_by(kind, option, entry) for entry in _listed(option, value, MAX_VALUES)]
    _check_once(option, found)
    return tuple(found)


def _method(option: str, value: object) -> Method:
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        _refuse(option, "options of a method by name", value)
    for name in value:
        if name in _NOT_SHARED:
            raise InvalidMethod(f"{option}.{name}: use the study's own field {_NOT_SHARED[name]}", f"{option}.{name}")
    try:
        return Method(**read_options(value, METHOD_OPTIONS, "study"))
    except InvalidMethod as error:
        raise InvalidMethod(f"{option}.{error}", f"{option}.{error.param}") from None


def _by(kind: Value, option: str, value: object) -> Any:
    """`value` read like an option of a method; errors name the study's field."""
    try:
        return kind.parse(value)
    except ValueError as error:
        raise InvalidMethod(f"{option}: {error}", option) from None
