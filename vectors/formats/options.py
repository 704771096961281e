"""What an upload may say about a file that does not say it itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vectors.defaults import DEFAULTS
from vectors.errors import InvalidVector
from vectors.vocabulary import CONVENTIONS, Convention

OVERRIDES = tuple(row.name for row in DEFAULTS)
"""The defaults and descriptions that an upload may set over the file's own."""


@dataclass(frozen=True)
class ImportOptions:
    """`layer`: the block of a file that holds one bare direction. `convention`: one of `CONVENTIONS`, GGUF only.

    `overrides`: any of `OVERRIDES`, replacing the file's own. Raises `InvalidVector` for anything else.
    """

    layer: int | None = None
    convention: Convention | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.layer is not None and (isinstance(self.layer, bool) or not isinstance(self.layer, int)):
            raise InvalidVector("layer must be a whole number", "layer")
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
        """Read `{"layer"?, "convention"?, …overrides}`, as an upload's `metadata` part gives them."""
        if not isinstance(value, dict):
            raise InvalidVector("the upload's metadata must be a JSON object", "metadata")
        rest = {name: entry for name, entry in value.items() if name not in ("layer", "convention")}
        return cls(value.get("layer"), value.get("convention"), rest)

    def refuse_layer(self, why: str) -> None:
        """Raise if a layer was given for a file that names its own."""
        if self.layer is not None:
            raise InvalidVector(f"layer was given, but {why}", "layer")

    def refuse_convention(self) -> None:
        """Raise if a convention was given for a format that has only one."""
        if self.convention is not None:
            raise InvalidVector("convention applies to GGUF files only", "convention")
