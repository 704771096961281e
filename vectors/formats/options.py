"""What an upload may say about a file that does not say it itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vectors.defaults import DEFAULTS
from vectors.errors import InvalidLayers, InvalidVector
from vectors.vocabulary import CONVENTIONS, Convention, parse_layers

OVERRIDES = tuple(row.name for row in DEFAULTS)
"""The defaults and descriptions that an upload may set over the file's own."""

FACTS = ("layer", "layers", "row", "convention")
"""The options that say how a file is read."""


@dataclass(frozen=True)
class ImportOptions:
    """`layer`: the block of a file with one direction, or the only one kept of several. `layers`: those kept.

    `row`: which of several alternatives for `layer` is meant. `convention`: one of `CONVENTIONS`, for formats that
    count layers in more than one way. `overrides`: any of `OVERRIDES`, replacing the file's own. Raises
    `InvalidVector` for anything else.
    """

    layer: int | None = None
    convention: Convention | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    layers: tuple[int, ...] | None = None
    row: int | None = None

    def __post_init__(self) -> None:
        for name, number in (("layer", self.layer), ("row", self.row)):
            if number is not None and (isinstance(number, bool) or not isinstance(number, int)):
                raise InvalidVector(f"{name} must be a whole number", name)
        if self.row is not None and self.layer is None:
            raise InvalidVector("row picks one of several alternatives for one layer: give layer as well", "layer")
        if self.layers is not None:
            if self.layer is not None:
                raise InvalidVector("expected layer or layers, got both", "layers")
            object.__setattr__(self, "layers", _layers_of(self.layers))
        if self.convention is not None and self.convention not in CONVENTIONS:
            raise InvalidVector(
                f"convention: expected one of {', '.join(CONVENTIONS)}, got {self.convention!r:.60}", "convention"
            )
        for name in self.overrides:
            if name not in OVERRIDES:
                raise InvalidVector(
                    f"{name[:60]!r} is not a field of a vector: expected one of {', '.join(OVERRIDES)}", name[:60]
                )

    @classmethod
    def from_json(cls, value: object) -> ImportOptions:
        """Read `{"layer"?, "layers"?, "row"?, "convention"?, …overrides}`, an upload's `metadata` part."""
        if not isinstance(value, dict):
            raise InvalidVector("the upload's metadata must be a JSON object", "metadata")
        rest = {name: entry for name, entry in value.items() if name not in FACTS}
        return cls(value.get("layer"), value.get("convention"), rest, value.get("layers"), value.get("row"))

    @property
    def asked(self) -> tuple[int, ...] | None:
        """The layers that the upload named, None if it named none."""
        return self.layers if self.layer is None else (self.layer,)

    def refuse_row(self, why: str) -> None:
        """Raise if a row was given for a file that has no alternatives."""
        if self.row is not None:
            raise InvalidVector(f"row was given, but {why}", "row")

    def choose_convention(self, choices: tuple[Convention, ...] = ()) -> Convention | None:
        """The convention given, if it is one of `choices`; else None if none was given. Raises `InvalidVector`."""
        if self.convention is not None and self.convention not in choices:
            expected = f"expected one of {', '.join(choices)}" if choices else "the file counts layers in one way only"
            raise InvalidVector(f"convention: {expected}, got {self.convention}", "convention")
        return self.convention


def _layers_of(value: object) -> tuple[int, ...]:
    if not isinstance(value, str | list | tuple):
        raise InvalidVector("layers: expected a list of layers, or text such as 12-16,20", "layers")
    try:
        return parse_layers(value)
    except InvalidLayers as error:
        raise InvalidVector(f"layers: {error}", "layers") from None
