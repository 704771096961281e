"""Every option of a training, from one table: the fields of `TaskOptions`, `MethodOptions`, `DataOptions` and
`JobOptions`.

Each field is declared with its name, kind of value, default, help, and what it is an option of. The parsers of a job's
`method.steering` and a study's `method`, their JSON schemas, the flags of `tiller train`, `evaluate` and `sweep`, and
the table in docs/training.md all come from it. It loads no torch.
"""

# ruff: noqa: RUF009 - the defaults are rows of the table: immutable, made once

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from vectors.data.options import MAX_SKIPPED, ROLES, Turn
from vectors.errors import InvalidMethod
from vectors.shares import Split
from vectors.training.values import (
    Fields,
    Layers,
    Number,
    OneOf,
    Scales,
    Share,
    Shares,
    Sizes,
    SomeOf,
    Switch,
    Text,
    Value,
    Whole,
)
from vectors.vocabulary import DEFAULT_SITE, MAX_SEED, SITES, Site

Kind = Literal["train", "probe", "evaluate", "sweep", "calibrate"]
"""What one job does: train a vector or a probe, evaluate a vector, train on increasing numbers of items, or measure how
strong a vector may be."""

KINDS: tuple[Kind, ...] = get_args(Kind)

LABELLED: tuple[Kind, ...] = ("train", "probe", "evaluate", "sweep")
"""Those that read labelled data."""

Use = Literal["train", "probe", "evaluate", "sweep", "calibrate", "study"]
"""What an option is an option of: a kind of task, or the method that a study's cells share."""

Variant = Literal["ipas_wrong_only", "ipas_all", "pas_full", "mean_difference"]
"""How items become two groups of texts; see `contrast.py`."""

VARIANTS: tuple[Variant, ...] = get_args(Variant)

Baseline = Literal["random", "logistic", "lda", "pca", "caa", "prompt", "icl"]
"""What a trained vector is compared with; see `baselines.py`."""

BASELINES: tuple[Baseline, ...] = get_args(Baseline)

Adaptive = Literal["cap", "gate"]
"""How the strength of a vector depends on the input; see `vectors/training/adaptive_vectors.py`."""

ADAPTIVES: tuple[Adaptive, ...] = get_args(Adaptive)

Fit = Literal["logistic", "mean_difference"]
"""How a probe's direction is found; see `vectors/training/probe_fitting.py`."""

FITS: tuple[Fit, ...] = get_args(Fit)

SIZES = (12, 25, 50, 100, 200, 400, 800, 1600, 2400)

_HOW_TO_ASK = "how to ask"
_HOW_TO_TRAIN = "how to train"
_HOW_TO_READ = "how to read the data"
_DOSE = "dose"


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One row of the table.

    `name` in JSON, `field` in the dataclass; `uses` says what it is an option of. `metavar` stands for its value after
    the flag (None: it has no flag), `example` is an example of that value, `group` is its heading in the help,
    `default_text` is how help and documents show the default.
    """

    name: str
    field: str
    value: Value
    default: Any
    uses: tuple[Use, ...]
    help: str
    metavar: str | None
    example: str
    group: str
    default_text: str

    @property
    def flag(self) -> str:
        """`--max-items`."""
        return "--" + self.name.replace("_", "-")

    @property
    def is_negatable(self) -> bool:
        """True for a switch that is neither on nor off unless given."""
        return isinstance(self.value, Switch) and self.default is None

    def read(self, given: object) -> Any:
        """The value read from JSON. Raises `InvalidMethod` naming the option."""
        try:
            return self.value.parse(given)
        except ValueError as error:
            raise InvalidMethod(f"{self.name}: {error}", self.name) from None

    def schema(self) -> dict[str, Any]:
        """The JSON schema of its value, with its help as the description."""
        only = "" if set(KINDS) <= {*self.uses} else f" Only for `{'` and `'.join(_kinds(self))}`."
        return self.value.schema() | {"description": f"{self.help[0].upper()}{self.help[1:]}.{only}"}


def _option(
    default: Any,
    value: Value,
    help: str,
    *,
    uses: tuple[Use, ...],
    name: str | None = None,
    metavar: str | None = None,
    example: str = "",
    group: str = "",
    default_text: str | None = None,
) -> Any:
    shown = default_text if default_text is not None else str(default)
    metadata = {
        "name": name, "value": value, "uses": uses, "help": help, "metavar": metavar,
        "example": example, "group": group, "default_text": shown,
    }  # fmt: skip
    if isinstance(default, dict):  # a dataclass takes no default that can be changed
        return dataclasses.field(default_factory=dict, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskOptions:
    """What a task does. Each field is a row of the table."""

    kind: Kind = _option("train", OneOf(KINDS), "what to do", name="task", uses=KINDS)
    vector: str | None = _option(
        None,
        Text("the name of a vector, or name@revision"),
        "the vector to evaluate or calibrate: a name, or name@revision",
        uses=("evaluate", "calibrate"),
        default_text="required",
    )
    scale: float | None = _option(
        None,
        Number(-1e6, 1e6),
        "scale to steer with",
        uses=("evaluate",),
        metavar="NUMBER",
        default_text="the vector's own",
    )
    sizes: tuple[int, ...] = _option(
        SIZES,
        Sizes(32),
        "numbers of training items to try",
        uses=("sweep",),
        metavar="LIST",
        default_text="12,25,50,… up to 2400",
    )
    fits: tuple[Fit, ...] = _option(
        FITS,
        SomeOf(FITS),
        "how a probe's direction is found: logistic (logistic regression), mean_difference (of the two classes), a "
        "list of these, or all; the best on validation is used",
        name="fit",
        uses=("probe",),
        metavar="NAME,…",
        group=_HOW_TO_TRAIN,
        default_text="all",
    )
    calibrate: bool = _option(
        False,
        Switch(),
        "measure how strong the vector may be, and publish that with it",
        uses=("train",),
        group=_DOSE,
        default_text="off",
    )
    kl: float = _option(
        1.0,
        Number(0.001, 100.0),
        "how far the safe range may move the next token: the 95th percentile of the KL divergence from the unsteered "
        "model, in nats",
        uses=("train", "calibrate"),
        metavar="NATS",
        group=_DOSE,
    )
    max_prompts: int = _option(
        24,
        Whole(8, 512),
        "maximum number of prompts that a calibration uses, the first of the file",
        uses=("train", "calibrate"),
        metavar="N",
        group=_DOSE,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodOptions:
    """How a vector is trained and asked about. Each field is a row of the table."""

    variants: tuple[Variant, ...] = _option(
        ("ipas_wrong_only",),
        SomeOf(VARIANTS),
        "how items become two groups of texts: ipas_wrong_only (the paper's iPASwo), ipas_all (iPASa), pas_full "
        "(PASf), mean_difference (of pairs), a list of these, or all; the best on validation is used",
        name="variant",
        uses=("train", "sweep"),
        metavar="NAME,…",
        group=_HOW_TO_TRAIN,
        default_text="ipas_wrong_only",
    )
    sites: tuple[Site, ...] = _option(
        (DEFAULT_SITE,),
        SomeOf(SITES),
        f"where to steer: {', '.join(SITES)}, a list of these, or all",
        name="site",
        uses=("train", "probe", "sweep"),
        metavar="NAME,…",
        group=_HOW_TO_TRAIN,
        default_text=DEFAULT_SITE,
    )
    layers: tuple[int, ...] | None = _option(
        None,
        Layers(),
        "blocks to try, counted from 0",
        uses=("train", "probe", "sweep", "study"),
        metavar="LIST",
        example="8,11-14",
        group=_HOW_TO_TRAIN,
        default_text="auto",
    )
    scales: tuple[float, ...] | None = _option(
        None,
        Scales(64),
        "scales to try: multiples of the mean difference, positive or negative",
        uses=("train", "sweep", "study"),
        metavar="LIST",
        example="0.5,1,2 or --scales=-1,1",
        group=_HOW_TO_TRAIN,
        default_text="auto",
    )
    split: Split = _option(
        Split(),
        Shares(),
        "shares of training, validation and test; your own validation data replaces the validation part",
        uses=("train", "probe", "sweep", "study"),
        metavar="SHARES",
        group=_HOW_TO_TRAIN,
        default_text="0.6,0.2,0.2",
    )
    prompt: Literal["raw", "chat"] = _option(
        "raw",
        OneOf(("raw", "chat")),
        "format of the prompts: raw (plain text) or chat (the model's chat template)",
        uses=("train", "probe", "evaluate", "sweep", "study"),
        metavar="KIND",
        group=_HOW_TO_ASK,
    )
    letters: Literal["balanced", "paper"] = _option(
        "balanced",
        OneOf(("balanced", "paper")),
        "how options get letters: balanced (shuffled separately for each item) or paper (the authors' choices: one "
        "shuffle for all items, bare letters, shifted residual read, their prompts, exemplars and grids, the first of "
        "ties from the last layer down)",
        uses=("train", "evaluate", "sweep", "study"),
        metavar="KIND",
        group=_HOW_TO_ASK,
    )
    icl: int = _option(
        0,
        Whole(0, 64),
        "number of solved examples before every prompt: training items that the model answers wrong (with paper "
        "letters any of them, which are trained on too)",
        uses=("train", "sweep"),
        metavar="K",
        group=_HOW_TO_TRAIN,
    )
    seeds: int = _option(
        1,
        Whole(1, 100),
        "number of splits to train and test on; a vector is recommended if it also helps over all of them, and the "
        "standard errors of a sweep are over them",
        uses=("train", "sweep"),
        metavar="N",
        group=_HOW_TO_TRAIN,
    )
    max_items: int = _option(
        4000,
        Whole(8, 100_000),
        "maximum number of items to use, drawn by the seed",
        uses=("train", "probe", "evaluate", "sweep", "study"),
        metavar="N",
        group=_HOW_TO_ASK,
    )
    paper_offset: bool | None = _option(
        None,
        Switch(),
        "read directions one block before the one they steer",
        uses=("train", "sweep", "study"),
        group=_HOW_TO_TRAIN,
        default_text="with paper letters only",
    )
    relative_scales: bool = _option(
        False,
        Switch(),
        "give scales in units of mean ‖h‖ ÷ ‖v‖, so that one grid fits any model",
        uses=("train", "sweep", "study"),
        group=_HOW_TO_TRAIN,
        default_text="off",
    )
    max_loss: float = _option(
        0.05,
        Number(0.0, 1.0),
        "the accuracy that a vector may cost on the retention items, 0.05 for 5 points; one that costs more is not "
        "recommended",
        uses=("train", "evaluate"),
        metavar="SHARE",
        group=_HOW_TO_TRAIN,
    )
    max_perplexity: float = _option(
        1.5,
        Number(1.0, 1e6),
        "how many times the perplexity of the retention texts may grow; a vector under which it grows more is not "
        "recommended; in a calibration, that of the steered answers under the unsteered model",
        uses=("train", "evaluate", "calibrate"),
        metavar="TIMES",
        group=_HOW_TO_TRAIN,
    )
    search_retention: bool = _option(
        False,
        Switch(),
        "leave cells out of the search that cost more than max_loss on half of the retention items; the report uses "
        "the other half",
        uses=("train",),
        group=_HOW_TO_TRAIN,
        default_text="off",
    )
    race: bool = _option(
        False,
        Switch(),
        "stop asking validation items of cells that cannot become the best any more, which changes no choice; the "
        "report then has an interval for them instead of an accuracy",
        uses=("train", "sweep"),
        group=_HOW_TO_TRAIN,
        default_text="off",
    )
    baselines: tuple[Baseline, ...] | None = _option(
        None,
        SomeOf(BASELINES),
        "what to compare the vector with, on the same split: directions of the same length that are random, or made by "
        "logistic regression (logistic), linear discriminant analysis (lda), or principal components (pca), the "
        "difference at the answer's letter (caa), a system prompt (prompt), 10 solved examples (icl), a list of these, "
        "or all",
        uses=("train",),
        metavar="NAME,…",
        group=_HOW_TO_TRAIN,
        default_text="none",
    )
    system_prompt: str | None = _option(
        None,
        Text("a system prompt"),
        "a system prompt of your own to try among those of the baseline prompt",
        uses=("train",),
        metavar="TEXT",
        group=_HOW_TO_TRAIN,
        default_text="none",
    )
    adaptive: Adaptive | None = _option(
        None,
        OneOf(ADAPTIVES),
        "also make a vector whose strength depends on the input, in the direction and at the place chosen: cap (brings "
        "it up to a threshold) or gate (adds it by the probability that the model answers wrong); it is published "
        "instead if it changes fewer answers elsewhere at equal accuracy",
        uses=("train",),
        metavar="FORM",
        group=_HOW_TO_TRAIN,
        default_text="none",
    )
    allow_no_gain: bool = _option(
        False,
        Switch(),
        "keep the vector even if it does not help",
        uses=("train", "probe"),
        group=_HOW_TO_TRAIN,
        default_text="off",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class DataOptions:
    """How labelled files are read. Each field is a row of the table; `vectors.data.ReadOptions` has the same fields."""

    map: Mapping[str, tuple[str, ...]] = _option(
        {},
        Fields(ROLES),
        f"which fields of the file are which, where their names do not say it: {', '.join(ROLES)} (the list inside a "
        "JSON object); several fields of options are joined with +",
        uses=LABELLED,
        metavar="ROLE=FIELD,…",
        example="question=stem,choices=opt_a+opt_b,answer=key",
        group=_HOW_TO_READ,
        default_text="by the fields' names",
    )
    max_skipped: float = _option(
        MAX_SKIPPED,
        Share(),
        "share of rows that may be left out because no item can be made of them (options that are the same or name "
        "each other, empty or too long texts); the report counts them",
        uses=LABELLED,
        metavar="SHARE",
        group=_HOW_TO_READ,
    )
    positive_class: str | None = _option(
        None,
        Text("the label of the wanted class"),
        "label of the wanted class, in files of texts with a class; all other classes are the unwanted one",
        uses=LABELLED,
        metavar="LABEL",
        group=_HOW_TO_READ,
        default_text="by the labels' names",
    )
    first_answer: int | None = _option(
        None,
        Whole(0, 1),
        "number of the first option where answers are numbers: 0 or 1",
        uses=LABELLED,
        metavar="N",
        group=_HOW_TO_READ,
        default_text="by the answers of the whole file",
    )
    turn: Turn | None = _option(
        None,
        OneOf(("user", "assistant")),
        "whose words texts without a prompt are: user (instructions, for refusal directions) or assistant",
        uses=LABELLED,
        metavar="WHO",
        group=_HOW_TO_READ,
        default_text="by the fields' names",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class JobOptions:
    """Options that only a job on a server has. Each field is a row of the table."""

    retention_file: str | None = _option(
        None,
        Text("the id of an uploaded file"),
        "the id of an uploaded file of items or texts on which the model must not get worse",
        uses=("train", "evaluate"),
        default_text="none",
    )
    negative_file: str | None = _option(
        None,
        Text("the id of an uploaded file"),
        "the id of an uploaded file with the texts of the unwanted class; the training file then has those of the "
        "wanted one",
        uses=LABELLED,
        default_text="none",
    )


def options_of(table: type[TaskOptions | MethodOptions | DataOptions | JobOptions]) -> Iterator[Option]:
    """The rows of one part of the table."""
    for field in dataclasses.fields(table):
        if "value" in field.metadata:
            name = field.metadata["name"] or field.name
            make = field.default_factory
            default = field.default if make is dataclasses.MISSING else make()
            yield Option(field=field.name, default=default, **{**field.metadata, "name": name})


TASK_OPTIONS = tuple(options_of(TaskOptions))
METHOD_OPTIONS = tuple(options_of(MethodOptions))
DATA_OPTIONS = tuple(options_of(DataOptions))
JOB_OPTIONS = tuple(options_of(JobOptions))
RETENTION_FILE, NEGATIVE_FILE = JOB_OPTIONS

OPTIONS = (*TASK_OPTIONS, *METHOD_OPTIONS, *DATA_OPTIONS, *JOB_OPTIONS)
"""The table, in the order of the documents."""

SEED = Option(
    name="seed",
    field="seed",
    value=Whole(0, MAX_SEED),
    default=0,
    uses=LABELLED,
    help="seed of the split and the shuffles",
    metavar="N",
    example="",
    group=_HOW_TO_ASK,
    default_text="0",
)
"""The seed, which jobs, commands and cells of a study have in addition to the options."""


def read_options(given: Mapping[str, Any], options: Iterable[Option], use: Use | None = None) -> dict[str, Any]:
    """The values of `given` by field; null counts as not given.

    Raises `InvalidMethod` naming the option if it is not among `options` or not an option of `use`, and for an invalid
    value.
    """
    known = {option.name: option for option in options}
    values: dict[str, Any] = {}
    for name, value in given.items():
        option = known.get(name)
        if option is None:
            own = [other.name for other in known.values() if use is None or use in other.uses]
            raise InvalidMethod(f"{name[:60]}: unknown option, expected one of {', '.join(own)}", name[:60])
        if value is None:
            continue
        if use is not None and use not in option.uses:
            raise InvalidMethod(f"{name}: not an option of {use}, only of {' and '.join(option.uses)}", name)
        values[option.field] = option.read(value)
    return values


def options_schema() -> dict[str, Any]:
    """The JSON schema of a job's `method.steering`, null included."""
    properties = {option.name: option.schema() for option in OPTIONS}
    return {
        "anyOf": [{"type": "object", "properties": properties, "additionalProperties": False}, {"type": "null"}],
        "description": "The options of the training, each with a default (docs/training.md).",
    }


def options_markdown() -> str:
    """The table in docs/training.md."""
    rows = ["| option | default | of | meaning |", "|---|---|---|---|"]
    for option in OPTIONS:
        uses = "all" if set(KINDS) <= {*option.uses} else ", ".join(f"`{kind}`" for kind in _kinds(option))
        rows.append(f"| `{option.name}` | {option.default_text} | {uses} | {option.help} |")
    return "\n".join(rows) + "\n"


def _kinds(option: Option) -> list[Kind]:
    return [kind for kind in KINDS if kind in option.uses]
