"""Method: the options of a training, checked and immutable, the same for REST and the command line.

The options and their meaning are those of Painless Activation Steering (Cui & Chen 2025, arXiv:2509.22739) with this
project's corrections; each is declared in `options.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from vectors.errors import InvalidMethod
from vectors.training.options import METHOD_OPTIONS, MethodOptions, read_options
from vectors.vocabulary import Site

PAPER_SCALES = (0.25, 0.5, 0.75, 1.0, 4.0, 7.0, 10.0, 13.0, 16.0, 19.0, 22.0, 25.0, 28.0, 32.0)
"""The authors' scales for the residual stream without exemplars."""

PAPER_FEWER_SCALES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""The authors' scales for all other sites, and for every site with exemplars."""

PAPER_LAYERS = (25, 22, 19, 17, 16, 15, 14, 13, 11, 8)
"""The authors' layers in the order in which they try them, for models with `PAPER_DEPTH` blocks."""

PAPER_DEPTH = 32

SCALES = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
RELATIVE_SCALES = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0, 1.5)
MAX_AUTO_LAYERS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Method(MethodOptions):
    """The options of one training.

    `variants` are compared; `layers` and `scales` of None are chosen for the model (`layers_for`, `scale_grid`).
    `prompt`: raw text or the model's chat template. `letters`: `balanced` shuffles each item's options separately with
    balanced letters, scores both spellings of a letter, lets the unsteered model compete and breaks ties by the
    smallest dose; `paper` shuffles all items alike, scores the bare letter, tries the last layer first, and takes the
    first of the best steered cells. `paper_offset`: directions for the output of block L are read at its input (None:
    only with `paper` letters). `icl`: exemplars before every prompt. `seeds`: how many splits are trained and tested.
    `relative_scales`: scales are in units of mean ‖h‖ ÷ ‖v‖. `max_loss` (a share) and `max_perplexity` (a ratio) limit
    what a vector may cost on retention data; with `search_retention`, cells that cost too much are not chosen.
    With `race`, cells that cannot be chosen any more are not asked further.
    `baselines` are what the vector is compared with, None for nothing; `system_prompt` is tried by the one that
    prompts. `adaptive` also tries a strength that depends on the input. `allow_no_gain` publishes a vector that does
    not help.
    """

    @classmethod
    def from_json(cls, given: Mapping[str, Any]) -> Self:
        """A method from its options by name. Raises `InvalidMethod` naming the option."""
        return cls(**read_options(given, METHOD_OPTIONS))

    def to_json(self) -> dict[str, Any]:
        """Every option as accepted by `from_json` and shown in reports."""
        shown = {option.name: option.value.to_json(getattr(self, option.field)) for option in METHOD_OPTIONS}
        return shown | {"paper_offset": self.reads_at_input}

    @property
    def is_paper(self) -> bool:
        """True if the authors' choices are reproduced."""
        return self.letters == "paper"

    @property
    def reads_at_input(self) -> bool:
        """True if residual directions are read one block before the one where they are added."""
        return self.is_paper if self.paper_offset is None else self.paper_offset

    def scale_grid(self, site: Site) -> tuple[float, ...]:
        """The scales to try at `site`, in the order of the grid."""
        if self.scales is not None:
            return self.scales
        if self.relative_scales:
            return RELATIVE_SCALES
        if self.is_paper:
            return PAPER_SCALES if site == "residual" and not self.icl else PAPER_FEWER_SCALES
        return SCALES

    def num_cells(self, num_layers: int) -> int:
        """How many cells the grid has in a model of `num_layers` blocks. Raises as `layers_for`."""
        num_scales = sum(len(self.scale_grid(site)) for site in self.sites)
        return len(self.variants) * len(self.layers_for(num_layers)) * num_scales

    def layers_for(self, num_layers: int) -> tuple[int, ...]:
        """The layers to try in a model of `num_layers` blocks, in the order of the grid.

        They ascend, and with `paper` letters descend. Raises `InvalidMethod` for layers that the model lacks.
        """
        first = 1 if self.reads_at_input and "residual" in self.sites else 0
        if first >= num_layers:
            raise InvalidMethod("layers: paper_offset needs a model with at least 2 blocks", "layers")
        if self.layers is not None:
            for layer in self.layers:
                if layer >= num_layers:
                    raise InvalidMethod(
                        f"layers: {layer} is outside the model, which has blocks 0 to {num_layers - 1}", "layers"
                    )
                if layer < first:
                    raise InvalidMethod(
                        "layers: paper_offset cannot steer block 0, which has no block before it", "layers"
                    )
            return tuple(sorted(self.layers, reverse=self.is_paper))
        if self.is_paper:
            scaled = {round(layer * num_layers / PAPER_DEPTH) for layer in PAPER_LAYERS}
            return tuple(sorted((layer for layer in scaled if first <= layer < num_layers), reverse=True))
        if num_layers - first <= MAX_AUTO_LAYERS:
            return tuple(range(first, num_layers))
        low, high = 0.2 * num_layers, 0.85 * num_layers
        step = (high - low) / (MAX_AUTO_LAYERS - 1)
        return tuple(sorted({round(low + index * step) for index in range(MAX_AUTO_LAYERS)}))
