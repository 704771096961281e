"""What a file says beside its tensors: where they belong, how they are applied, how strongly.

A fact that asks for something other than adding at a block's output is honoured or refused, never dropped.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from vectors.errors import InvalidVector
from vectors.formats.hooks import place_of
from vectors.vocabulary import Operation, Site

_LAYERS = ("layer", "layer_index", "layer_idx", "layer_id", "source_layer")
_SCALES = ("coeff", "coefficient", "alpha", "auto_alpha", "suggested_alpha", "strength", "multiplier")
_MODELS = ("model", "model_id", "base_model", "model_name", "model_name_or_path")
_HOOKS = ("hook_site", "hook_name", "hook_point", "site", "hook")
_OPERATIONS = ("operation", "op", "method", "mode")
_WORDS: Mapping[str, Operation] = {
    "add": "add", "addition": "add", "additive": "add", "steer": "add",
    "ablate": "ablate", "ablation": "ablate", "project": "ablate", "project_out": "ablate", "projection": "ablate",
}  # fmt: skip


class Facts:
    """Facts of a file by name. A prefix, as in GGUF's `controlvector.method`, does not matter."""

    def __init__(self, facts: Mapping[str, Any]) -> None:
        self._facts = {str(name).lower(): value for name, value in facts.items() if _is_fact(value)}

    def layer(self) -> int | None:
        """The layer that the file names."""
        for _, value in self._found(_LAYERS):
            if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,4}", value):
                value = int(value)
            if isinstance(value, int) and not isinstance(value, bool):
                return value
        return None

    def place(self, layer: int | None = None) -> tuple[Site, int, int | None]:
        """The site, the shift of layers and the layer of the file's hook; by default the block's output."""
        hooks = [value for _, value in self._found(_HOOKS) if isinstance(value, str) and value]
        places = [place_of(hook, layer, self.model) for hook in hooks]
        sites = {(site, shift) for site, shift, _ in places}
        if len(sites) > 1:
            raise InvalidVector("the file names two hooks that contradict each other", "site")
        if not places:
            return "residual", 0, layer
        return max(places, key=lambda place: -1 if place[2] is None else place[2])

    @property
    def names_place(self) -> bool:
        """True when the file says where its directions belong."""
        return any(isinstance(value, str) and value for _, value in self._found(_HOOKS))

    def defaults(self) -> dict[str, Any]:
        """The operation, the scale and the model that the file asks for. Raises `InvalidVector`."""
        found: dict[str, Any] = {}
        for name, value in self._found(_OPERATIONS):
            word = value.lower() if isinstance(value, str) else None
            operation = _WORDS.get(word) if word is not None else None
            if operation is not None:
                found["operation"] = operation
            elif name.rpartition(".")[2] in ("operation", "op"):
                raise InvalidVector(f"{name[:60]}: expected one of {', '.join(_WORDS)}, got {value!r:.60}", "operation")
        for name, value in self._found(_SCALES):
            try:
                number = float(value) if isinstance(value, int | float | str) and value != "" else None
            except ValueError:
                number = math.nan
            if number is not None and not math.isfinite(number):
                raise InvalidVector(f"{name[:60]}: expected a finite number, got {value!r:.60}", "default_scale")
            if number is not None:
                if found.setdefault("default_scale", number) != number:
                    raise InvalidVector(f"the file gives two strengths: {found['default_scale']:g} and {number:g}")
            elif name == "auto_alpha":
                found["default_scale"] = 2.0  # what the library uses without a calibration
        if self.model is not None:
            found["model"] = self.model
        return found

    @property
    def model(self) -> str | None:
        """The name of the model that the file is for."""
        names = [value for _, value in self._found(_MODELS) if isinstance(value, str) and value]
        return names[-1] if names else None

    def text(self, name: str) -> str | None:
        """The text under `name`."""
        value = self._facts.get(name)
        return value if isinstance(value, str) else None

    def _found(self, names: tuple[str, ...]) -> list[tuple[str, Any]]:
        return [(name, value) for name, value in self._facts.items() if name.rpartition(".")[2] in names]


def _is_fact(value: object) -> bool:
    return value is None or isinstance(value, str | int | float)
