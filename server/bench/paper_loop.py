"""The slow search, as a baseline: plain transformers, one prompt and one cell at a time.

It follows the authors' protocol (Cui & Chen 2025): layers are read one at a time, every cell of the grid reads every
validation prompt again, letters are bare, options are shuffled alike, and the first of the best cells wins. Written
from the method's description; it shares no modelling code with the engine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vectors.data.items import LETTERS, ShownItem
from vectors.training.contrast import Answered, contrast_of
from vectors.training.options import Variant
from vectors.training.prompts import LetteredAnswer, Text, lettered_prompt, raw_text


@dataclass(frozen=True, slots=True)
class SlowCell:
    """A cell of the grid with its validation accuracy (0 … 1)."""

    variant: str
    site: str
    layer: int
    scale: float
    accuracy: float


class PaperLoop:
    """A transformers model with `model.layers`, and its tokenizer, in evaluation mode on the CPU."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self._model = model
        self._tokenizer = tokenizer

    def _module(self, site: str, layer: int) -> Any:
        block = self._model.model.layers[layer]
        return block.mlp if site == "mlp" else block

    @contextmanager
    def _hooked(self, site: str, layer: int, change: Callable[[Tensor], object]) -> Iterator[None]:
        def hook(module: object, inputs: object, output: Any) -> None:
            change(output[0] if isinstance(output, tuple) else output)

        handle = self._module(site, layer).register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()

    def _ids(self, text: str) -> Tensor:
        return torch.tensor([self._tokenizer(text)["input_ids"]])

    @torch.inference_mode()
    def chosen(self, shown: ShownItem) -> int:
        """The place of the likeliest bare letter."""
        logits = self._model(input_ids=self._ids(lettered_prompt(shown)), use_cache=False).logits[0, -1]
        letters = self._tokenizer.convert_tokens_to_ids(list(LETTERS[: len(shown.order)]))
        return int(logits[letters].argmax())

    @torch.inference_mode()
    def activation(self, text: Text, site: str, layer: int) -> Tensor:
        """float32 `[hidden]` at the last token; the residual stream is read at the block's input."""
        assert not isinstance(text, LetteredAnswer)  # which only baselines read
        whole = lettered_prompt(text) if isinstance(text, ShownItem) else "".join(raw_text(text))
        read = layer - 1 if site == "residual" else layer
        found: list[Tensor] = []
        with self._hooked(site, read, lambda hidden: found.append(hidden[0, -1].clone())):
            self._model(input_ids=self._ids(whole), use_cache=False)
        return found[0]

    def direction(self, positive: Sequence[Text], negative: Sequence[Text], site: str, layer: int) -> Tensor:
        """Mean activation of one group less that of the other, float32 `[hidden]`."""
        means = [
            torch.stack([self.activation(text, site, layer) for text in texts]).double().mean(0)
            for texts in (positive, negative)
        ]
        return (means[0] - means[1]).float()

    def accuracy(self, items: Sequence[ShownItem], site: str, layer: int, shift: Tensor) -> float:
        """The share of items answered right with `shift` added at the last prompt token."""
        num_right = 0
        for shown in items:
            with self._hooked(site, layer, lambda hidden: hidden[0, -1].add_(shift)):
                num_right += self.chosen(shown) == shown.answer
        return num_right / len(items)

    def search(
        self,
        train: Sequence[ShownItem],
        validation: Sequence[ShownItem],
        variants: Sequence[Variant],
        places: Sequence[tuple[str, int]],
        scales: Sequence[float],
        advance: Callable[[], None],
    ) -> list[SlowCell]:
        """Every cell in the order variant, place, scale; `advance` is called after each."""
        answers = [Answered(shown, self.chosen(shown)) for shown in train]
        cells = []
        for variant in variants:
            contrast = contrast_of(variant, answers)
            for site, layer in places:
                direction = self.direction(contrast.positive, contrast.negative, site, layer)
                for scale in scales:
                    accuracy = self.accuracy(validation, site, layer, scale * direction)
                    cells.append(SlowCell(variant, site, layer, scale, accuracy))
                    advance()
        return cells
