"""Directions: mean activations of one group of texts minus another's, at every layer and site.

Those of Painless Activation Steering (Cui & Chen 2025, arXiv:2509.22739). A lettered prompt is answered and read in one
pass; the other texts, which depend on the answers, are read afterwards.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vectors.data.items import ShownItem
from vectors.training.contrast import Answered, Contrast
from vectors.training.examiner import Advance, Examiner, Question
from vectors.training.method import Method
from vectors.training.model_view import ModelView
from vectors.training.prompts import Text, statements_of
from vectors.vocabulary import Place, Site

Directions = Mapping[Site, Tensor]
"""float32 `[layers, hidden]` by site: the direction to add at each layer."""


class _Sums:
    """Of a group of texts: sums of activations `[sites, layers, hidden]` and of their lengths `[sites, layers]`.

    float64, so order hardly matters.
    """

    def __init__(self, *shape: int) -> None:
        self.count = 0
        self.activations = torch.zeros(shape, dtype=torch.float64)
        self.lengths = torch.zeros(shape[:-1], dtype=torch.float64)

    def add(self, activations: Tensor) -> None:
        """Add those of one text, float64 `[sites, layers, hidden]`."""
        self.count += 1
        self.activations += activations
        self.lengths += activations.norm(dim=-1)

    @property
    def mean(self) -> Tensor:
        """The mean activation; zeros of no text."""
        return self.activations / max(1, self.count)


class AnswersAndActivations:
    """The unsteered model's answers, through `examiner`, and the mean activations of texts.

    `kept`: the activations of the contrasted texts, if `method` has baselines; they are made from these.
    `num_tokens`: of the texts read so far.
    """

    def __init__(self, view: ModelView, examiner: Examiner, method: Method) -> None:
        layers = method.layers_for(view.num_layers)
        self._probe = view
        self._examiner = examiner
        self._method = method
        self._right, self._wrong = self._new_sums(), self._new_sums()
        self.kept = KeptActivations(layers, reads_at_input=method.reads_at_input)
        self.num_tokens = 0

    def answer(self, questions: Sequence[Question], advance: Advance) -> list[Answered]:
        """The answers to `questions`, whose prompts are read in the same pass if they are lettered."""
        keeps = bool(self._method.baselines) and "pas_full" in self._method.variants

        def note(question: ShownItem, place: int, found: Mapping[Site, Tensor]) -> None:
            self.num_tokens += len(self._examiner.tokens_of(question))
            if place < 0:
                return
            self._sums_of(Answered(question, place)).add(self._stack(found))
            if keeps:
                self.kept.add(question, found)

        chosen = self._examiner.answer(questions, self._method.sites, note, advance)
        return [Answered(question, place) for question, place in zip(questions, chosen, strict=True)]

    def directions(
        self,
        contrasts: Mapping[str, Contrast],
        answers: Sequence[Answered],
        compared: Iterable[str],
        advance: Advance,
    ) -> tuple[dict[str, Directions], Mapping[Site, Tensor]]:
        """The directions of every variant, and the mean length of the activations of what was asked at every layer.

        `answers` are those of `answer`. Each distinct text is read once; `compared` names the variants whose texts are
        kept for baselines. Where a method reads at the input, the residual direction for layer L is the difference at
        the output of layer L - 1; layer 0 then has none (zeros).
        """
        asked = self._new_sums()
        groups: dict[str, tuple[_Sums, _Sums]] = {}
        members: dict[Text, list[_Sums]] = {}  # a text that appears twice in a group counts twice
        for answer in answers:
            if not isinstance(answer.item, ShownItem):
                members.setdefault(statements_of(answer.item)[0], []).append(asked)
        for variant, contrast in contrasts.items():
            if variant == "pas_full":  # its texts are the lettered prompts
                groups[variant] = (self._right, self._wrong)
                continue
            groups[variant] = (self._new_sums(), self._new_sums())
            for sums, texts in zip(groups[variant], (contrast.positive, contrast.negative), strict=True):
                for text in texts:
                    members.setdefault(text, []).append(sums)
        names = compared if self._method.baselines else ()
        kept = {text for name in names for text in (*contrasts[name].positive, *contrasts[name].negative)}
        distinct = list(members)
        prompts = [self._examiner.tokens_of(text) for text in distinct]
        self.num_tokens += sum(map(len, prompts))
        for num_done, (index, found) in enumerate(self._probe.activations(prompts, self._method.sites), 1):
            text = distinct[index]
            if text in kept:
                self.kept.add(text, found)
            activations = self._stack(found)
            for sums in members[text]:
                sums.add(activations)
            advance(num_done)
        everything = (self._right, self._wrong, asked)
        lengths = sum(sums.lengths for sums in everything) / max(1, sum(sums.count for sums in everything))
        assert isinstance(lengths, Tensor)
        found_directions = {name: self._difference(*own) for name, own in groups.items()}
        return found_directions, dict(zip(self._method.sites, lengths, strict=True))

    def _difference(self, positive: _Sums, negative: _Sums) -> Directions:
        difference = dict(zip(self._method.sites, (positive.mean - negative.mean).float(), strict=True))
        if self._method.reads_at_input and "residual" in difference:
            shifted = difference["residual"].roll(1, dims=0)
            shifted[0] = 0.0
            difference["residual"] = shifted
        return difference

    def _new_sums(self) -> _Sums:
        return _Sums(len(self._method.sites), self._probe.num_layers, self._probe.hidden_size)

    def _sums_of(self, answer: Answered) -> _Sums:
        return self._right if answer.is_right else self._wrong

    def _stack(self, found: Mapping[Site, Tensor]) -> Tensor:
        return torch.stack([found[site] for site in self._method.sites]).double()


class KeptActivations:
    """The activations of texts, float32, at the `layers` to be steered: the output of a layer, or with
    `reads_at_input` that of the one before for the residual site.
    """

    def __init__(self, layers: Sequence[int], *, reads_at_input: bool) -> None:
        self._layers = tuple(layers)
        self._reads_at_input = reads_at_input
        self._found: dict[Text, dict[Site, Tensor]] = {}

    def add(self, text: Text, activations: Mapping[Site, Tensor]) -> None:
        """Keep those of a text, `[layers of the model, hidden]` by site."""
        self._found[text] = {site: found[list(self._sources(site))] for site, found in activations.items()}

    def of(self, texts: Sequence[Text], place: Place) -> npt.NDArray[np.float64]:
        """Those of `texts` at a place, `[texts, hidden]`."""
        site, layer = place
        row = self._layers.index(layer)
        found: npt.NDArray[np.float64] = torch.stack([self._found[text][site][row] for text in texts]).double().numpy()
        return found

    def _sources(self, site: Site) -> Iterable[int]:
        shift = 1 if self._reads_at_input and site == "residual" else 0
        return (layer - shift for layer in self._layers)
