"""A vector's defaults and descriptions, from one table: the fields of `VectorDefaults`.

Each is declared with its default, JSON schema, help, and where it can be overridden. File headers, uploads, the bodies
of the registry, the flags of `tiller vectors put` and the table in docs/vectors.md all come from it. It loads no torch.
"""

# ruff: noqa: RUF009 - the defaults are rows of the table: immutable, made once

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from vectors.positions import POSITIONS_SCHEMA, Positions, PositionsJson
from vectors.vocabulary import (
    ACTIVATIONS,
    DEFAULT_ACTIVATION,
    DEFAULT_LAYERS,
    DEFAULT_LAYERS_CHOICES,
    DEFAULT_OPERATION,
    DEFAULT_PARTS,
    DEFAULT_POSITIONS,
    DEFAULT_SCALE,
    DEFAULT_SITE,
    MAX_DESCRIPTION,
    MAX_MODEL_ID,
    OPERATIONS,
    PARTS,
    SITES,
    Activation,
    DefaultLayers,
    Operation,
    Part,
    Site,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Default:
    """One row of the table.

    `schema` is that of a value in JSON, without null. `is_changeable`: `PATCH` may change it. `is_creatable`: a vector
    created from numbers may have it; files and uploads may set every field. `in_request` is the field of a request's
    `steering` that overrides it, `flag` the flag of `tiller vectors put`; "" for none.
    """

    name: str
    default: Any
    schema: Mapping[str, Any]
    help: str
    is_changeable: bool
    is_creatable: bool
    in_request: str
    flag: str
    metavar: str

    @property
    def choices(self) -> tuple[str, ...]:
        """The allowed values, or those of its list, beside which objects may be; empty if they cannot be listed."""
        schema = self.schema["anyOf"][0] if "anyOf" in self.schema else self.schema
        return tuple(schema.get("items", schema).get("enum", ()))


def _default(
    default: Any,
    schema: Mapping[str, Any],
    help: str,
    *,
    is_changeable: bool = True,
    is_creatable: bool = True,
    in_request: str = "",
    flag: str = "",
    metavar: str = "",
) -> Any:
    metadata = {
        "schema": schema, "help": help, "is_changeable": is_changeable, "is_creatable": is_creatable,
        "in_request": in_request, "flag": flag, "metavar": metavar,
    }  # fmt: skip
    if default == {}:
        return dataclasses.field(default_factory=dict, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def _one_of(choices: Sequence[str]) -> dict[str, Any]:
    return {"type": "string", "enum": list(choices)}


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorDefaults:
    """What applies if a request does not say otherwise, and descriptions. Each field is a row of the table."""

    site: Site = _default(
        DEFAULT_SITE, _one_of(SITES), "where in a block the directions are added", is_changeable=False
    )
    default_scale: float = _default(
        DEFAULT_SCALE,
        {"type": "number"},
        "multiplier on the directions",
        in_request="scale",
        flag="--scale",
        metavar="NUMBER",
    )
    operation: Operation = _default(
        DEFAULT_OPERATION,
        _one_of(OPERATIONS),
        "how the directions are applied",
        in_request="operation",
        flag="--operation",
    )
    max_scale: float | None = _default(
        None,
        {"type": "number", "exclusiveMinimum": 0},
        "the largest scale, of either sign, that requests may ask for without what `--dose-limit` does",
        flag="--max-scale",
        metavar="NUMBER",
    )
    positions: Positions = _default(
        DEFAULT_POSITIONS,
        POSITIONS_SCHEMA,
        'which tokens are steered, by name or as a window such as {"of": "prompt", "last": 4}',
        in_request="positions",
        flag="--positions",
        metavar="POSITIONS",
    )
    parts: tuple[Part, ...] = _default(
        DEFAULT_PARTS,
        {"type": "array", "items": {"enum": list(PARTS)}, "minItems": 1, "uniqueItems": True},
        "which parts of the response are steered",
        in_request="parts",
        flag="--parts",
        metavar="PART,…",
    )
    default_layers: DefaultLayers = _default(
        DEFAULT_LAYERS,
        _one_of(DEFAULT_LAYERS_CHOICES),
        "the layers of a request that names none; with `none`, it must name them",
    )
    activation: Activation = _default(
        DEFAULT_ACTIVATION, _one_of(ACTIVATIONS), "the function of what the vector reads", flag="--activation"
    )
    min: float | None = _default(
        None,
        {"type": "number"},
        "the least that `cap` leaves of what the vector reads, in its own unit",
        in_request="min",
        flag="--min",
        metavar="NUMBER",
    )
    max: float | None = _default(
        None,
        {"type": "number"},
        "the most that `cap` leaves of it",
        in_request="max",
        flag="--max",
        metavar="NUMBER",
    )
    threshold: float | None = _default(
        None,
        {"type": "number"},
        "the score above which a probe of the vector counts a token; without one 0, or 0.5 of a probability",
        flag="--threshold",
        metavar="NUMBER",
    )
    description: str = _default(
        "",
        {"type": "string", "maxLength": MAX_DESCRIPTION},
        "what the vector is",
        flag="--description",
        metavar="TEXT",
    )
    metadata: Mapping[str, Any] = _default({}, {"type": "object"}, "your own JSON")
    training: Mapping[str, Any] | None = _default(
        None, {"type": "object"}, "how the vector was made", is_changeable=False, is_creatable=False
    )
    calibration: Mapping[str, Any] | None = _default(
        None,
        {"type": "object"},
        "how strong the vector may be, as a calibration measured it",
        is_changeable=False,
        is_creatable=False,
    )
    model: str | None = _default(
        None,
        {"type": "string", "maxLength": MAX_MODEL_ID},
        "the model that the vector was made for",
        is_changeable=False,
        is_creatable=False,
    )


DEFAULTS = tuple(
    Default(name=field.name, default=getattr(VectorDefaults(), field.name), **field.metadata)
    for field in dataclasses.fields(VectorDefaults)
)
"""The table, in the order of the documents."""


class ChangedDefaults(TypedDict, total=False):
    """The fields of `VectorDefaults` that may be changed, as keywords. None clears what may be without a value."""

    default_scale: float
    max_scale: float | None
    operation: Operation
    positions: PositionsJson
    parts: Sequence[Part]
    default_layers: DefaultLayers
    activation: Activation
    min: float | None
    max: float | None
    threshold: float | None
    description: str
    metadata: Mapping[str, Any]


class CreatedDefaults(ChangedDefaults, total=False):
    """The fields that a vector created from numbers may have, as keywords."""

    site: Site


class UploadedDefaults(CreatedDefaults, total=False):
    """The fields that an upload may set, overriding its file, as keywords: all of them."""

    training: Mapping[str, Any]
    calibration: Mapping[str, Any]
    model: str


def defaults_markdown() -> str:
    """The table in docs/vectors.md."""
    rows = ["| field | default | a request's `steering` | `PATCH` | meaning |", "|---|---|---|---|---|"]
    for row in DEFAULTS:
        choices = f": {', '.join(f'`{choice}`' for choice in row.choices)}" if row.choices else ""
        in_request = f"`{row.in_request}`" if row.in_request else ""
        change = "yes" if row.is_changeable else ""
        rows.append(f"| `{row.name}` | {_shown(row.default)} | {in_request} | {change} | {row.help}{choices} |")
    return "\n".join(rows) + "\n"


def _shown(default: Any) -> str:
    if isinstance(default, tuple):
        return ", ".join(f"`{entry}`" for entry in default)
    return f"`{default}`" if default or isinstance(default, float) else "none"
