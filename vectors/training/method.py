"""Method: what a training is asked to do. Checked once, immutable, the same for REST and the command line.

The options and their meaning are those of Painless Activation Steering (Cui & Chen 2025, arXiv:2509.22739) with
this project's corrections. A method does not know data, models or how it is carried out.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self, get_args

from vectors.data.split import Split
from vectors.errors import InvalidMethod
from vectors.vocabulary import MAX_LAYER, SITES, Site

Variant = Literal["ipas_wrong_only", "ipas_all", "pas_full", "mean_difference"]
"""How texts become two groups; see `contrast.py`."""

VARIANTS: tuple[Variant, ...] = get_args(Variant)

PAPER_SCALES = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0)
"""Fourteen scales over the paper's range for the residual stream."""

PAPER_LAYERS = (8, 11, 13, 14, 15, 16, 17, 19, 22, 25)
"""The paper's layers, of models with `PAPER_DEPTH` blocks."""

PAPER_DEPTH = 32

SCALES = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
RELATIVE_SCALES = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0, 1.5)
MAX_AUTO_LAYERS = 12
MAX_SCALES = 64
MAX_SEEDS = 100
MAX_ITEMS = 100_000
MAX_EXEMPLARS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """The options of one training.

    `variants` are tried side by side; `layers` and `scales` None are chosen for the model (`layers_for`,
    `scale_grid`). `prompt`: raw text or the model's chat template. `letters`: `balanced` shuffles every item's
    options anew with balanced letters, scores both spellings of a letter, lets the unsteered model compete and
    breaks ties by the smallest dose; `paper` shuffles all items alike, scores the bare letter, and takes the first
    best steered cell. `paper_offset`: directions for the output of block L are read at its input (None: with the
    `paper` letters only). `icl`: exemplars before every prompt. `seeds`: how many splits are trained and tested.
    `relative_scales`: scales are in units of mean ‖h‖ ÷ ‖v‖. `allow_no_gain` publishes a vector that does not help.
    """

    variants: tuple[Variant, ...] = ("ipas_wrong_only",)
    sites: tuple[Site, ...] = ("residual",)
    layers: tuple[int, ...] | None = None
    scales: tuple[float, ...] | None = None
    split: Split = field(default_factory=Split)
    prompt: Literal["raw", "chat"] = "raw"
    letters: Literal["balanced", "paper"] = "balanced"
    icl: int = 0
    seeds: int = 1
    max_items: int = 4000
    paper_offset: bool | None = None
    relative_scales: bool = False
    allow_no_gain: bool = False

    @classmethod
    def from_json(cls, given: Mapping[str, Any]) -> Self:
        """A method from `method.steering` of a job or a study. Raises `InvalidMethod` naming the option."""
        parsers = {
            "variant": ("variants", _variants),
            "site": ("sites", _sites),
            "layers": ("layers", _layers),
            "scales": ("scales", _scales),
            "split": ("split", _split),
            "prompt": ("prompt", _one_of("raw", "chat")),
            "letters": ("letters", _one_of("balanced", "paper")),
            "icl": ("icl", _whole(0, MAX_EXEMPLARS)),
            "seeds": ("seeds", _whole(1, MAX_SEEDS)),
            "max_items": ("max_items", _whole(8, MAX_ITEMS)),
            "paper_offset": ("paper_offset", _switch),
            "relative_scales": ("relative_scales", _switch),
            "allow_no_gain": ("allow_no_gain", _switch),
        }
        values: dict[str, Any] = {}
        for option, value in given.items():
            if option not in parsers:
                raise InvalidMethod(f"{option[:60]}: unknown option; there are {', '.join(parsers)}", option[:60])
            name, parse = parsers[option]
            if value is not None:
                values[name] = parse(option, value)
        return cls(**values)

    def to_json(self) -> dict[str, Any]:
        """Every option as `from_json` takes it, and as reports show it."""
        return {
            "variant": "all" if self.variants == VARIANTS else list(self.variants),
            "site": "all" if self.sites == SITES else list(self.sites),
            "layers": "auto" if self.layers is None else list(self.layers),
            "scales": "auto" if self.scales is None else list(self.scales),
            "split": dataclasses.asdict(self.split),
            "prompt": self.prompt,
            "letters": self.letters,
            "icl": self.icl,
            "seeds": self.seeds,
            "max_items": self.max_items,
            "paper_offset": self.reads_at_input,
            "relative_scales": self.relative_scales,
            "allow_no_gain": self.allow_no_gain,
        }

    @property
    def is_paper(self) -> bool:
        """True when the authors' choices are reproduced."""
        return self.letters == "paper"

    @property
    def reads_at_input(self) -> bool:
        """True when residual directions are read one block before the one that they are added at."""
        return self.is_paper if self.paper_offset is None else self.paper_offset

    def scale_grid(self) -> tuple[float, ...]:
        """The scales to try, in the order of the grid."""
        if self.scales is not None:
            return self.scales
        if self.relative_scales:
            return RELATIVE_SCALES
        return PAPER_SCALES if self.is_paper else SCALES

    def layers_for(self, num_layers: int) -> tuple[int, ...]:
        """The layers to try on a model of so many blocks, ascending. Raises `InvalidMethod` for one that it lacks."""
        first = 1 if self.reads_at_input and "residual" in self.sites else 0
        if first >= num_layers:
            raise InvalidMethod("layers: with paper_offset a model of one block has none to steer", "layers")
        if self.layers is not None:
            for layer in self.layers:
                if layer >= num_layers:
                    raise InvalidMethod(
                        f"layers: {layer} is outside the model, which has blocks 0 to {num_layers - 1}", "layers"
                    )
                if layer < first:
                    raise InvalidMethod("layers: with paper_offset block 0 has no block before it", "layers")
            return self.layers
        if self.is_paper:
            scaled = {round(layer * num_layers / PAPER_DEPTH) for layer in PAPER_LAYERS}
            return tuple(sorted(layer for layer in scaled if first <= layer < num_layers))
        if num_layers - first <= MAX_AUTO_LAYERS:
            return tuple(range(first, num_layers))
        low, high = 0.2 * num_layers, 0.85 * num_layers
        step = (high - low) / (MAX_AUTO_LAYERS - 1)
        return tuple(sorted({round(low + index * step) for index in range(MAX_AUTO_LAYERS)}))


def _refusal(option: str, what: str, value: object) -> InvalidMethod:
    return InvalidMethod(f"{option}: give {what}, not {value!r:.60}", option)


def _names(option: str, value: object, known: Sequence[str]) -> tuple[Any, ...]:
    listed = list(known) if value == "all" else [value] if isinstance(value, str) else value
    if not isinstance(listed, list) or not listed or any(name not in known for name in listed):
        raise _refusal(option, f"one or a list of {', '.join(known)}, or all", value)
    if len(set(listed)) != len(listed):
        raise _refusal(option, "each once", value)
    return tuple(name for name in known if name in listed)


def _variants(option: str, value: object) -> tuple[Any, ...]:
    return _names(option, value, VARIANTS)


def _sites(option: str, value: object) -> tuple[Any, ...]:
    return _names(option, value, SITES)


def _layers(option: str, value: object) -> tuple[int, ...] | None:
    if value == "auto":
        return None
    what = f"auto or a list of block numbers up to {MAX_LAYER}, each once"
    if not isinstance(value, list) or not 0 < len(value) <= MAX_LAYER:
        raise _refusal(option, what, value)
    if not all(type(layer) is int and 0 <= layer <= MAX_LAYER for layer in value) or len(set(value)) != len(value):
        raise _refusal(option, what, value)
    return tuple(sorted(value))


def _scales(option: str, value: object) -> tuple[float, ...] | None:
    if value == "auto":
        return None
    what = f"auto or a list of up to {MAX_SCALES} numbers other than 0, each once"
    if not isinstance(value, list) or not 0 < len(value) <= MAX_SCALES:
        raise _refusal(option, what, value)
    for scale in value:
        if type(scale) not in (int, float) or not 1e-6 <= abs(scale) <= 1e6:
            raise _refusal(option, "numbers between 1e-6 and 1e6, of either sign", scale)
    if len(set(value)) != len(value):
        raise _refusal(option, what, value)
    return tuple(float(scale) for scale in value)


def _split(option: str, value: object) -> Split:
    names = [field.name for field in dataclasses.fields(Split)]
    if not isinstance(value, Mapping) or set(value) - set(names) or len(value) != len(names):
        raise _refusal(option, f"an object with {', '.join(names)}", value)
    for share in value.values():
        if type(share) not in (int, float) or not 0.0 < share < 1.0:
            raise _refusal(option, "shares between 0 and 1", share)
    if not math.isclose(sum(value.values()), 1.0, abs_tol=1e-6):
        raise InvalidMethod(f"{option}: the shares sum to {sum(value.values()):g}, not 1", option)
    return Split(**{name: float(value[name]) for name in names})


def _one_of(*names: str) -> Any:
    def parse(option: str, value: object) -> Any:
        if value not in names or not isinstance(value, str):
            raise _refusal(option, " or ".join(names), value)
        return value

    return parse


def _whole(smallest: int, largest: int) -> Any:
    def parse(option: str, value: object) -> int:
        if type(value) is not int or not smallest <= value <= largest:
            raise _refusal(option, f"a whole number from {smallest} to {largest}", value)
        return value

    return parse


def _switch(option: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise _refusal(option, "true or false", value)
    return value
