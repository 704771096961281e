"""Objects of the vector registry."""

from __future__ import annotations

from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict

from server.api.generation.objects import Revision, UnixSeconds
from server.api.http.objects import PageFields
from vectors.positions import PositionsJson
from vectors.vocabulary import Activation, DefaultLayers, Operation, Part, Site


class VectorRevision(TypedDict):
    """A revision in a vector's history."""

    revision: Revision
    created_at: UnixSeconds
    bytes: int


class Vector(TypedDict):
    """A steering vector: its current revision and defaults.

    `norms` are the lengths of its directions by layer, `rank` the most directions at one layer. With
    `has_read_directions` it reads along others than it writes. `training` describes how it was trained, if this project
    trained it, and `calibration` how strong it may be, if it was calibrated. `history`, newest first, is only present
    when a single vector is requested.
    """

    object: Literal["steering.vector"]
    id: str
    name: str
    revision: Revision
    created_at: UnixSeconds
    bytes: int
    hidden_size: int
    layers: list[int]
    norms: dict[str, float]
    rank: int
    has_read_directions: bool
    parts: list[Part]
    default_layers: DefaultLayers
    site: Site
    default_scale: float
    max_scale: float | None
    operation: Operation
    positions: PositionsJson
    activation: Activation
    min: float | None
    max: float | None
    threshold: float | None
    description: str
    metadata: dict[str, Any]
    training: dict[str, Any] | None
    calibration: dict[str, Any] | None
    model: str | None
    history: NotRequired[list[VectorRevision]]


class DamagedVector(TypedDict):
    """A vector whose files are damaged, so that it cannot be used: `error` names the file.

    `revision` and `created_at` are null where they cannot be read either.
    """

    object: Literal["steering.vector.damaged"]
    id: str
    name: str
    revision: Revision | None
    created_at: UnixSeconds | None
    error: str


class VectorList(PageFields):
    """A page of vectors, sorted by name. `last_id` is the `after` of the next page."""

    data: list[Vector | DamagedVector]


class DeletedVector(TypedDict):
    """The vector is deleted and its name is free."""

    id: str
    object: Literal["steering.vector.deleted"]
    deleted: Literal[True]
