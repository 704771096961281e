"""Examiner: asks a model items and returns its choices, unsteered or under many steerings at once.

It turns items into token ids: raw text or the model's chat template, with or without solved examples before them. A
letter's probability is the sum over its spellings (`A`, ` A`) of the first token that each adds to the prompt; if two
letters share such a token, of the whole spelling. A pair's choice is the text whose tokens are likelier on average.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vectors.data.items import LETTERS, Message, PairItem, ShownItem
from vectors.errors import InvalidData
from vectors.training.method import Method
from vectors.training.model_view import Continuations, ModelView, Steering
from vectors.training.prompts import (
    LetteredAnswer,
    Statement,
    Text,
    lettered_prompt,
    raw_text,
    solved_example,
    statement_of,
    statements_of,
    turns_of,
    with_system,
)
from vectors.vocabulary import Site

Question = ShownItem | PairItem

Steerings = Sequence[tuple[Steering, ...]]
"""Each entry is the vectors added together; the empty one is the unsteered model."""

Choices = npt.NDArray[np.int64]
"""`[steerings, questions]`: the chosen place of each question, -1 where the output was not finite."""

Scores = npt.NDArray[np.float64]
"""`[steerings, items]`: the share of an item's prompts answered correctly."""

Advance = Callable[[int], None]

Note = Callable[[ShownItem, int, Mapping[Site, Tensor]], None]
"""Receives a lettered question, the place chosen, and the activations at the end of its prompt, `[layers, hidden]`."""

_Tokens = tuple[int, ...]
_CONTEXT = 8


@dataclass(frozen=True, slots=True)
class _Letters:
    """How the letters follow a prompt: `spellings[place]` are token sequences."""

    spellings: tuple[tuple[_Tokens, ...], ...]

    @property
    def first_tokens(self) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(dict.fromkeys(tokens[0] for tokens in found)) for found in self.spellings)

    @property
    def all_first_tokens(self) -> tuple[int, ...]:
        return tuple(token for tokens in self.first_tokens for token in tokens)

    @property
    def num_first_tokens(self) -> tuple[int, ...]:
        return tuple(map(len, self.first_tokens))

    @property
    def are_told_apart(self) -> bool:
        """True when no two letters begin with the same token."""
        firsts = self.all_first_tokens
        return len(set(firsts)) == len(firsts)


@dataclass(frozen=True, slots=True)
class _Asked:
    """The lettered question number `index` as it is asked."""

    index: int
    question: ShownItem
    prompt: _Tokens
    letters: _Letters


def _ignore(num_done: int) -> None:
    pass


class Examiner:
    """Asks `view` as `method` says, under the prompt `system` and after the solved `exemplars`."""

    def __init__(self, view: ModelView, method: Method, exemplars: Sequence[ShownItem] = (), system: str = "") -> None:
        self._probe = view
        self._is_chat = method.prompt == "chat"
        self._spellings = ("{}",) if method.is_paper else ("{}", " {}")
        self._exemplars = tuple(exemplars)
        self._system = system
        self._known_letters: dict[tuple[_Tokens, int], _Letters] = {}

    def tokens_of(self, text: Text) -> _Tokens:
        """The token ids of a lettered prompt or a whole statement. Raises `InvalidData` when it is too long."""
        if isinstance(text, ShownItem):
            tokens = self._lettered(text)
            line = text.item.line
        elif isinstance(text, LetteredAnswer):
            tokens = self._lettered(text.shown, LETTERS[text.place])
            line = text.shown.item.line
        else:
            tokens = self._statement(text)[1]
            line = None
        if len(tokens) >= self._probe.max_length:
            raise InvalidData(
                f"expected a prompt of at most {self._probe.max_length - 1} tokens, got {len(tokens)}", line=line
            )
        return tokens

    def choose(self, questions: Sequence[Question], steerings: Steerings, advance: Advance = _ignore) -> Choices:
        """The model's choices, `[steerings, questions]`; `advance` receives the number of questions done."""
        chosen = np.full((len(steerings), len(questions)), -1, dtype=np.int64)
        lettered = [index for index, question in enumerate(questions) if isinstance(question, ShownItem)]
        for num_done, (index, places) in enumerate(self._choose_letters(questions, lettered, steerings), 1):
            chosen[:, index] = places
            advance(num_done)
        pairs = [index for index, question in enumerate(questions) if isinstance(question, PairItem)]
        for number, steering in enumerate(steerings if pairs else ()):
            for index, place in self._choose_texts(questions, pairs, steering):
                chosen[number, index] = place
            advance(len(lettered) + len(pairs) * (number + 1) // len(steerings))
        return chosen

    def answer(
        self, questions: Sequence[Question], sites: Sequence[Site], note: Note, advance: Advance = _ignore
    ) -> list[int]:
        """The unsteered model's choices; `note` receives those of lettered questions with what was read at `sites`."""
        lettered = [index for index, question in enumerate(questions) if isinstance(question, ShownItem)]
        simple, whole = self._prompts_of(questions, lettered)
        others = sorted(set(range(len(questions))).difference(asked.index for asked in simple))
        chosen = np.full(len(questions), -1, dtype=np.int64)
        token_ids = [asked.letters.all_first_tokens for asked in simple]
        answers = self._probe.answers([asked.prompt for asked in simple], token_ids, sites)
        for num_done, (number, (logits, found)) in enumerate(answers, 1):
            asked = simple[number]
            (chosen[asked.index],) = _likeliest(logits[None], asked.letters.num_first_tokens)
            note(asked.question, int(chosen[asked.index]), found)
            advance(num_done)
        chosen[others] = self.choose(
            [questions[index] for index in others], [()], lambda num_done: advance(len(simple) + num_done)
        )[0]
        for number, found in self._probe.activations([asked.prompt for asked in whole], sites) if whole else ():
            note(whole[number].question, int(chosen[whole[number].index]), found)
        return [int(place) for place in chosen]

    def balanced_scores(
        self, questions: Sequence[Question], steerings: Steerings, advance: Advance = _ignore
    ) -> tuple[Scores, Choices]:
        """Each item's share of right answers over every rotation of its options, and the choices made.

        The choices are `[steerings, prompts]`, an item's rotations next to each other.
        """
        asked: list[Question] = []
        owners: list[int] = []
        for index, question in enumerate(questions):
            rotations = question.rotations() if isinstance(question, ShownItem) else (question,)
            asked.extend(rotations)
            owners.extend([index] * len(rotations))
        chosen = self.choose(asked, steerings, advance)
        right = chosen == answers_of(asked)
        owner = np.asarray(owners)
        sums = np.stack([np.bincount(owner, weights=row, minlength=len(questions)) for row in right.astype(float)])
        return sums / np.bincount(owner, minlength=len(questions)), chosen

    def _choose_letters(
        self, questions: Sequence[Question], indices: Sequence[int], steerings: Steerings
    ) -> Iterator[tuple[int, Choices]]:
        simple, whole = self._prompts_of(questions, indices)
        token_ids = [asked.letters.all_first_tokens for asked in simple]
        for number, logits in self._probe.next_token_logits([a.prompt for a in simple], token_ids, steerings):
            yield simple[number].index, _likeliest(logits, simple[number].letters.num_first_tokens)
        for number, chosen in self._choose_spelled(whole, steerings) if whole else ():
            yield whole[number].index, chosen

    def _prompts_of(self, questions: Sequence[Question], indices: Sequence[int]) -> tuple[list[_Asked], list[_Asked]]:
        """The lettered questions as they are asked: those whose letters' first tokens differ, and the others."""
        simple: list[_Asked] = []
        whole: list[_Asked] = []
        for index in indices:
            question = questions[index]
            assert isinstance(question, ShownItem)
            prompt = self.tokens_of(question)
            letters = self._letters_after(prompt, question)
            (simple if letters.are_told_apart else whole).append(_Asked(index, question, prompt, letters))
        return simple, whole

    def _choose_spelled(self, asked: Sequence[_Asked], steerings: Steerings) -> Iterator[tuple[int, Choices]]:
        """The likeliest letter by whole spellings, under each steering; many prompts at once."""
        queries = (
            Continuations(one.prompt, tuple(tokens for each in one.letters.spellings for tokens in each), steering)
            for one in asked
            for steering in steerings
        )
        found: dict[int, dict[int, list[float]]] = {}
        for query, logprobs in self._probe.continuation_logprobs(queries):
            number, steering = divmod(query, len(steerings))
            parts = found.setdefault(number, {})
            parts[steering] = [sum(spelling) for spelling in logprobs]
            if len(parts) == len(steerings):
                totals = torch.tensor([parts[other] for other in range(len(steerings))])
                yield number, _likeliest(totals, [len(spellings) for spellings in asked[number].letters.spellings])
                del found[number]

    def _choose_texts(
        self, questions: Sequence[Question], indices: Sequence[int], steering: tuple[Steering, ...]
    ) -> Iterator[tuple[int, int]]:
        queries = []
        for index in indices:
            pair = questions[index]
            assert isinstance(pair, PairItem)
            for statement in statements_of(pair):
                prompt, tokens = self._scored(statement)
                self._checked_text(pair, prompt, tokens)
                queries.append(Continuations(prompt, (tokens[len(prompt) :],), steering))
        means = np.full(len(queries), np.nan)
        for number, (logprobs,) in self._probe.continuation_logprobs(queries):
            means[number] = np.mean(logprobs)
        for number, index in enumerate(indices):
            positive, negative = means[2 * number : 2 * number + 2]
            is_finite = bool(np.isfinite(positive) and np.isfinite(negative))
            yield index, (0 if positive > negative else 1) if is_finite else -1

    def check(self, question: Question) -> None:
        """Raise `InvalidData`, as asking it would, for a question that is too long or has no probability."""
        if isinstance(question, ShownItem):
            for shown in question.rotations():
                self.tokens_of(shown)
            for place in range(len(question.order)):
                self.tokens_of(statement_of(question, place))
        else:
            for statement in statements_of(question):
                self.tokens_of(statement)
                self._checked_text(question, *self._scored(statement))

    def _checked_text(self, pair: PairItem, prompt: _Tokens, tokens: _Tokens) -> None:
        if len(tokens) > self._probe.max_length:
            raise InvalidData(
                f"expected a text of at most {self._probe.max_length} tokens, got {len(tokens)}", line=pair.line
            )
        if len(tokens) == len(prompt):
            raise InvalidData(
                "a text of one token without a prompt has no probability; add a prompt or use a longer text",
                line=pair.line,
            )

    def _scored(self, statement: Statement) -> tuple[_Tokens, _Tokens]:
        """The tokens before a text and those up to its end, whose likelihood is the text's."""
        if statement.speaker != "user":
            return self._statement(statement)
        if not self._is_chat:
            return self._statement(Statement("", str(statement.prompt)))
        whole = self._probe.encode_chat(with_system(turns_of(statement), self._system))
        frames = [self._probe.encode_chat(with_system((Message("user", letter),), self._system)) for letter in "ab"]
        begin = max(1, min(_num_common(whole, frame) for frame in frames))
        after = min(_num_common(whole[::-1], frame[::-1]) for frame in frames)
        return whole[:begin], whole[: max(begin + 1, len(whole) - after)]

    def _lettered(self, shown: ShownItem, letter: str = "") -> _Tokens:
        if not self._is_chat:
            examples = "".join(solved_example(exemplar, self._spellings[-1]) for exemplar in self._exemplars)
            answer = f" {letter}" if letter else ""
            return self._probe.encode(self._before + examples + lettered_prompt(shown) + answer)
        turns: list[Message] = []
        for exemplar in self._exemplars:
            turns.append(Message("user", lettered_prompt(exemplar)))
            turns.append(Message("assistant", LETTERS[exemplar.answer]))
        turns.append(Message("user", lettered_prompt(shown)))
        return self._probe.encode_chat(with_system(turns, self._system), letter)

    @property
    def _before(self) -> str:
        """The system prompt before raw text."""
        return f"{self._system}\n\n" if self._system else ""

    def _statement(self, statement: Statement) -> tuple[_Tokens, _Tokens]:
        """The prompt's tokens, at least one, and those of the whole text, which begin with them."""
        if self._is_chat:
            if statement.speaker is None and not statement.prompt:
                raise InvalidData(
                    "the texts have no prompt, so in the chat format it must be said whose words they are: "
                    "--turn user or --turn assistant (turn)"
                )
            turns = with_system(turns_of(statement), self._system)
            prompt = self._probe.encode_chat(turns)
            if statement.speaker == "user":
                return prompt[:-1], prompt
            tokens = self._probe.encode_chat(turns, statement.reply)
        else:
            text, reply = raw_text(statement)
            text = self._before + text
            prompt, tokens = self._probe.encode(text), self._probe.encode(text + reply)
        return tokens[: max(1, min(_num_common(prompt, tokens), len(tokens) - 1))], tokens

    def _letters_after(self, prompt: _Tokens, shown: ShownItem) -> _Letters:
        """How the letters follow the prompt; the same for prompts with the same ending."""
        key = (prompt[-_CONTEXT:], len(shown.order))
        found = self._known_letters.get(key)
        if found is None:
            found = _Letters(tuple(self._spellings_of(letter, prompt, shown) for letter in LETTERS[: len(shown.order)]))
            self._known_letters[key] = found
        return found

    def _spellings_of(self, letter: str, prompt: _Tokens, shown: ShownItem) -> tuple[_Tokens, ...]:
        found = []
        for spelling in self._spellings:
            text = spelling.format(letter)
            if self._is_chat:
                tokens = self._probe.encode_chat([Message("user", lettered_prompt(shown))], text)
                before = self._probe.encode_chat([Message("user", lettered_prompt(shown))])
            else:
                tokens, before = self._probe.encode(lettered_prompt(shown) + text), prompt
                before = self._probe.encode(lettered_prompt(shown)) if self._exemplars or self._system else before
            if tokens[: len(before)] == before and len(tokens) > len(before):
                found.append(tokens[len(before) :])
            else:  # the letter merges with the prompt's last token: use its tokens on its own
                found.append(self._probe.encode(text)[len(self._probe.encode("")) :])
        return tuple(dict.fromkeys(found))


def _num_common(one: _Tokens, other: _Tokens) -> int:
    """How many tokens two texts have in common at the beginning."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((number for number, (left, right) in pairs if left != right), min(len(one), len(other)))


def answers_of(questions: Sequence[Question]) -> npt.NDArray[np.int64]:
    """The right place of each question, `[questions]`."""
    return np.asarray(
        [question.answer if isinstance(question, ShownItem) else 0 for question in questions], dtype=np.int64
    )


def _likeliest(scores: Tensor, sizes: Sequence[int]) -> Choices:
    """The group of adjacent columns with the highest summed probability, first of equals; -1 in a row of NaN.

    `scores` are log-probabilities, up to a constant for each row.
    """
    if all(size == 1 for size in sizes):
        totals = scores
    else:
        totals = torch.stack([part.logsumexp(-1) for part in torch.split(scores, list(sizes), dim=-1)], dim=-1)
    chosen = totals.argmax(dim=-1)
    chosen[torch.isnan(scores).any(dim=-1)] = -1
    return chosen.numpy()
