"""A plain, slow reference for training: transformers, forward hooks, one prompt at a time.

Written from the table of Painless Activation Steering and this project's corrections of it alone: prompts, letters'
spellings, the four variants, the paper's choices, the grid and how its best cell is picked. Nothing here uses tiller's
code but the items; they come as `vectors.data` shows them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from tests.reference import site_module
from vectors.data import Message, PairItem, ShownItem
from vectors.vocabulary import SITES

VARIANTS = ("ipas_wrong_only", "ipas_all", "pas_full", "mean_difference")
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
MOST_BEGUN = 64
"""How many prompts are kept as the model read them, about a megabyte each."""


@dataclass(frozen=True)
class Added:
    """What is added: `scale * direction` at the output of `site` of block `layer`, from the last prompt token on."""

    direction: Tensor
    site: str
    layer: int
    scale: float


@dataclass(frozen=True)
class Tried:
    """A cell of the grid that was asked: the share of validation items that it answers right."""

    variant: str
    site: str
    layer: int
    scale: float
    relative_dose: float
    accuracy: float


@dataclass
class PlainModel:
    """A transformers model and its tokenizer, asked as `chat` or raw, in the paper's way or ours, after `exemplars`."""

    model: nn.Module
    tokenizer: Any
    chat: bool = False
    paper: bool = False
    exemplars: tuple[ShownItem, ...] = ()
    # what was read or spelled once, kept because every cell asks again
    _read: dict[tuple[int, ...], dict[str, Tensor]] = field(default_factory=dict, repr=False)
    _spelled: dict[object, list[list[tuple[int, ...]]]] = field(default_factory=dict, repr=False)
    _begun: dict[tuple[int, ...], DynamicCache] = field(default_factory=dict, repr=False)

    def but(self, *, chat: bool = False, paper: bool = False, exemplars: Sequence[ShownItem] = ()) -> PlainModel:
        """The same model asked in another way."""
        kept = self._read, self._spelled, self._begun
        return PlainModel(self.model, self.tokenizer, chat, paper, tuple(exemplars), *kept)

    # prompts

    def raw(self, text: str) -> list[int]:
        """Token ids of raw text."""
        return list(self.tokenizer(text).input_ids)

    def rendered(self, turns: Sequence[tuple[str, str]], reply: str = "") -> list[int]:
        """Token ids of a chat and the beginning of the assistant's reply."""
        text = self.tokenizer.apply_chat_template(
            [{"role": role, "content": content} for role, content in turns], tokenize=False, add_generation_prompt=True
        )
        return list(self.tokenizer(text + reply, add_special_tokens=False).input_ids)

    def question(self, shown: ShownItem, after: str = "") -> list[int]:
        """The lettered prompt, with `after` as the beginning of the answer."""
        if self.chat:
            turns = []
            for solved in self.exemplars:
                turns += [("user", question_text(solved)), ("assistant", ALPHABET[solved.answer])]
            return self.rendered([*turns, ("user", question_text(shown))], after)
        space = "" if self.paper else " "
        before = "".join(f"{question_text(one)}{space}{ALPHABET[one.answer]}\n\n" for one in self.exemplars)
        return self.raw(before + question_text(shown) + after)

    def statement(self, prompt: str | tuple[Message, ...], reply: str) -> list[int]:
        """A question with one reply, without letters."""
        if self.chat:
            turns = [("user", prompt)] if isinstance(prompt, str) else [(turn.role, turn.content) for turn in prompt]
            return self.rendered(turns, reply)
        text = prompt if isinstance(prompt, str) else "\n".join(turn.content for turn in prompt)
        return self.raw(f"{text} {reply}" if text else reply)

    # what the model says

    @torch.no_grad()
    def logits(self, tokens: Sequence[int], added: Sequence[Added] = (), num_prompt: int | None = None) -> Tensor:
        """Logits, float64 `[tokens, vocabulary]`, after the last token of the prompt and after each that follows.

        Nothing is added before it: that is read once, into transformers' own cache, and every cell goes on from there.
        """
        first = (len(tokens) if num_prompt is None else num_prompt) - 1
        cache = self._begin(tuple(tokens[:first]))
        with self._adding(added):
            output = self.model(input_ids=torch.tensor([list(tokens[first:])]), past_key_values=cache, use_cache=True)
        cache.crop(first - len(tokens))
        logits: Tensor = output.logits[0].double()
        return logits

    def continuation(self, prompt: Sequence[int], reply: Sequence[int], added: Sequence[Added] = ()) -> list[float]:
        """The log-probability of each token of `reply` after `prompt`."""
        rows = self.logits([*prompt, *reply], added, len(prompt)).log_softmax(-1)
        return [float(rows[place, token]) for place, token in enumerate(reply)]

    def spellings(self, shown: ShownItem) -> list[list[tuple[int, ...]]]:
        """For each letter the token sequences that it adds to the prompt, spelled `A` and, unless paper, ` A`."""
        key = (shown, self.chat, self.paper)
        if key in self._spelled:
            return self._spelled[key]
        prompt = self.but(chat=self.chat).question(shown)
        found = []
        for letter in ALPHABET[: len(shown.order)]:
            own: list[tuple[int, ...]] = []
            for text in (letter,) if self.paper else (letter, f" {letter}"):
                tokens = self.but(chat=self.chat).question(shown, text)
                is_whole = tokens[: len(prompt)] == prompt
                added = tokens[len(prompt) :] if is_whole else self.raw(text)[len(self.raw("")) :]
                if tuple(added) not in own:
                    own.append(tuple(added))
            found.append(own)
        self._spelled[key] = found
        return found

    def letter_probabilities(self, shown: ShownItem, added: Sequence[Added] = ()) -> list[float]:
        """How likely each letter is: all spellings together."""
        prompt, spellings = self.question(shown), self.spellings(shown)
        firsts = [{tokens[0] for tokens in own} for own in spellings]
        shares_one = any(firsts[one] & firsts[other] for one in range(len(firsts)) for other in range(one))
        if shares_one:
            return [
                sum(float(torch.tensor(self.continuation(prompt, tokens, added)).sum().exp()) for tokens in own)
                for own in spellings
            ]
        last = self.logits(prompt, added)[-1].softmax(-1)
        return [sum(float(last[token]) for token in own) for own in firsts]

    def letter(self, shown: ShownItem, added: Sequence[Added] = ()) -> int:
        """The place of the likeliest letter."""
        likely = self.letter_probabilities(shown, added)
        return likely.index(max(likely))

    def text(self, pair: PairItem, added: Sequence[Added] = ()) -> int:
        """0 when the positive text's tokens are likelier on average than the negative's, else 1."""
        empty = self.statement_start(pair)
        means = []
        for reply in (pair.positive, pair.negative):
            tokens = self.statement(pair.prompt, reply)
            start = max(1, _common(empty, tokens))
            logprobs = self.continuation(tokens[:start], tokens[start:], added)
            means.append(sum(logprobs) / len(logprobs))
        return 0 if means[0] > means[1] else 1

    def statement_start(self, pair: PairItem) -> list[int]:
        """The pair's prompt without a reply."""
        if self.chat:
            return self.statement(pair.prompt, "")
        turns = pair.prompt
        return self.raw(turns if isinstance(turns, str) else "\n".join(turn.content for turn in turns))

    def choice(self, question: ShownItem | PairItem, added: Sequence[Added] = ()) -> int:
        """What the model chooses."""
        return self.letter(question, added) if isinstance(question, ShownItem) else self.text(question, added)

    def accuracy(self, questions: Sequence[ShownItem | PairItem], added: Sequence[Added] = ()) -> float:
        """The share of questions answered right."""
        return sum(self.choice(question, added) == answer_of(question) for question in questions) / len(questions)

    def balanced_accuracy(self, questions: Sequence[ShownItem], added: Sequence[Added] = ()) -> float:
        """The mean over questions of the share of their rotations that are answered right."""
        shares = []
        for shown in questions:
            order = shown.order
            turned = [ShownItem(shown.item, order[place:] + order[:place]) for place in range(len(order))]
            shares.append(self.accuracy(turned, added))
        return sum(shares) / len(shares)

    # directions

    @torch.no_grad()
    def last_activations(self, tokens: Sequence[int]) -> dict[str, Tensor]:
        """`[layers, hidden]` by site at the last token."""
        known = self._read.get(tuple(tokens))
        if known is not None:
            return known
        config: Any = self.model.config
        num_layers: int = config.num_hidden_layers
        seen: dict[tuple[str, int], Tensor] = {}
        handles = []
        for site in SITES:
            for layer in range(num_layers):

                def hook(
                    module: nn.Module, args: object, output: object, place: tuple[str, int] = (site, layer)
                ) -> None:
                    seen[place] = _activation(output)[0, -1].double().clone()

                handles.append(site_module(self.model, site, layer).register_forward_hook(hook))
        try:
            self.model(input_ids=torch.tensor([list(tokens)]), use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        found: dict[str, torch.Tensor] = {
            site: torch.stack([seen[site, layer] for layer in range(num_layers)]) for site in SITES
        }
        self._read[tuple(tokens)] = found
        return found

    def mean(self, texts: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        """The mean activation of the texts' last tokens."""
        read = [self.last_activations(tokens) for tokens in texts]
        return {site: torch.stack([one[site] for one in read]).mean(0) for site in SITES}

    def mean_length(self, texts: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        """The mean length of the texts' last activations, `[layers]`."""
        read = [self.last_activations(tokens) for tokens in texts]
        return {site: torch.stack([one[site].norm(dim=-1) for one in read]).mean(0) for site in SITES}

    def groups(
        self, variant: str, questions: Sequence[ShownItem | PairItem], chosen: Sequence[int]
    ) -> tuple[list[list[int]], list[list[int]]]:
        """P+ and P- of the table: token ids of both groups of texts."""
        positive: list[list[int]] = []
        negative: list[list[int]] = []
        for question, place in zip(questions, chosen, strict=True):
            answer = answer_of(question)
            is_right = place == answer
            if variant == "pas_full":
                assert isinstance(question, ShownItem)
                (positive if is_right else negative).append(self.question(question))
            elif variant == "ipas_all":
                (positive if is_right else negative).append(self._option(question, answer if is_right else place))
            elif variant == "ipas_wrong_only" and not is_right:
                positive.append(self._option(question, answer))
                negative.append(self._option(question, place))
            elif variant == "mean_difference":
                other = place if not is_right else min({0, 1} - {answer})
                positive.append(self._option(question, answer))
                negative.append(self._option(question, other))
        return positive, negative

    def directions(
        self, questions: Sequence[ShownItem | PairItem], variants: Sequence[str], *, offset: bool
    ) -> dict[str, dict[str, dict[int, Tensor]]]:
        """variant -> site -> layer -> what is added at that layer; with `offset` read a block earlier (residual)."""
        chosen = [self.choice(question) for question in questions]
        found: dict[str, dict[str, dict[int, Tensor]]] = {}
        for variant in variants:
            positive, negative = self.groups(variant, questions, chosen)
            above, below = self.mean(positive), self.mean(negative)
            found[variant] = {}
            for site in SITES:
                difference = above[site] - below[site]
                first = 1 if offset and site == "residual" else 0
                found[variant][site] = {layer: difference[layer - first] for layer in range(first, len(difference))}
        return found

    def _option(self, question: ShownItem | PairItem, place: int) -> list[int]:
        if isinstance(question, ShownItem):
            return self.statement(question.item.question, question.item.choices[question.order[place]])
        return self.statement(question.prompt, (question.positive, question.negative)[place])

    def _begin(self, tokens: tuple[int, ...]) -> DynamicCache:
        cache = self._begun.pop(tokens, None)
        if cache is None:
            cache = DynamicCache()
            if tokens:
                self.model(input_ids=torch.tensor([tokens]), past_key_values=cache, use_cache=True, logits_to_keep=1)
            while len(self._begun) >= MOST_BEGUN:
                del self._begun[next(iter(self._begun))]
        self._begun[tokens] = cache
        return cache

    @contextlib.contextmanager
    def _adding(self, added: Sequence[Added]) -> Iterator[None]:
        handles = []
        for one in added:

            def hook(module: nn.Module, args: object, output: object, one: Added = one) -> object:
                before = _activation(output)
                changed = before + one.scale * one.direction.to(before.dtype)
                return (changed, *output[1:]) if isinstance(output, tuple) else changed

            handles.append(site_module(self.model, one.site, one.layer).register_forward_hook(hook))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def plain_model(folder: Path) -> PlainModel:
    """The model of a folder in float32."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    return PlainModel(model.eval(), AutoTokenizer.from_pretrained(folder))


def question_text(shown: ShownItem) -> str:
    """The paper's prompt."""
    text = f"{shown.item.question}\n"
    for place, option in enumerate(shown.order):
        text += f"{ALPHABET[place]}: {shown.item.choices[option]}\n"
    if shown.item.context is not None:
        text += f"Remember, {shown.item.context}.\n"
    return f"{text}Respond with a single letter.\nAnswer:"


def answer_of(question: ShownItem | PairItem) -> int:
    """The place of the right answer; a pair's is its positive text."""
    return question.order.index(question.item.answer) if isinstance(question, ShownItem) else 0


def try_grid(
    plain: PlainModel,
    training: Sequence[ShownItem],
    validation: Sequence[ShownItem],
    *,
    variants: Sequence[str],
    sites: Sequence[str],
    layers: Sequence[int],
    scales: Sequence[float],
) -> tuple[float, list[Tried]]:
    """The unsteered accuracy, and every cell asked by itself, in the order variant, site, layer, scale."""
    directions = plain.directions(training, variants, offset=plain.paper)
    lengths = plain.mean_length([plain.question(shown) for shown in training])
    tried = []
    for variant in variants:
        for site in sites:
            for layer in layers:
                direction = directions[variant][site][layer]
                for scale in scales:
                    dose = float(abs(scale) * direction.norm() / lengths[site][layer])
                    accuracy = plain.accuracy(validation, [Added(direction, site, layer, scale)])
                    tried.append(Tried(variant, site, layer, scale, dose, accuracy))
    return plain.accuracy(validation), tried


def best(tried: Sequence[Tried], *, paper: bool) -> Tried:
    """The paper takes the first of the best cells, we the one that changes activations least."""
    top = [cell for cell in tried if cell.accuracy == max(other.accuracy for other in tried)]
    return top[0] if paper else sorted(top, key=lambda cell: cell.relative_dose)[0]


def _activation(output: object) -> Tensor:
    found = output[0] if isinstance(output, tuple) else output
    assert isinstance(found, Tensor)
    return found


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    num_common = 0
    while num_common < min(len(one), len(other) - 1) and one[num_common] == other[num_common]:
        num_common += 1
    return num_common
