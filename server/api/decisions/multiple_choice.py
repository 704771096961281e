"""Multiple-choice questions about an input: their prompts, and the probabilities of their answers.

A question is asked with its options labelled A, B, C …, once in the given order and once reversed. The answer is the
model's distribution of the next token, restricted to the labels.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from server.errors import InvalidRequest
from server.text import TextProcessor
from vectors.data.items import LETTERS, Message

Tokens = tuple[int, ...]

_SPELLINGS = ("{}", " {}")
_ANSWER = "\nAnswer:"
_TEMPLATE_KWARGS = {"enable_thinking": False}
"""A model that reasons first gives labels no probability; templates without reasoning ignore this."""


@dataclass(frozen=True, slots=True)
class Question:
    """A question about an input, with 2 or more options of which one is the answer."""

    instructions: str
    options: tuple[str, ...]

    @property
    def orders(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The two orders in which the options are shown: `order[place]` is the index of the option there."""
        given = tuple(range(len(self.options)))
        return given, given[::-1]

    def text(self, order: Sequence[int]) -> str:
        """The question as the model reads it, with its options in `order`; a label should follow."""
        labels = labels_for(len(self.options))
        lines = [f"{label}: {self.options[index]}" for label, index in zip(labels, order, strict=True)]
        kind = "letter" if labels[0] in LETTERS else "number"
        return "\n".join([self.instructions, *lines, f"Respond with a single {kind}."]) + _ANSWER


def labels_for(num_options: int) -> tuple[str, ...]:
    """Letters, or numbers of equal length if there are too few letters, so that no label is a prefix of another."""
    if num_options <= len(LETTERS):
        return tuple(LETTERS[:num_options])
    width = len(str(num_options))
    return tuple(f"{number:0{width}}" for number in range(1, num_options + 1))


class Interview:
    """Asks questions about the turns of one input: as the last user turn of a chat, or as text without a template.

    Raises `InvalidRequest` (param `input`) when the chat template rejects the turns.
    """

    def __init__(
        self,
        text: TextProcessor,
        turns: Sequence[Message],
        max_model_len: int,
        template_kwargs: dict[str, object] | None = None,
    ) -> None:
        self._text = text
        self._max_model_len = max_model_len
        self._is_chat = text.has_chat_template
        if self._is_chat:
            self._before, self._after = _rendered(text, turns, _TEMPLATE_KWARGS | (template_kwargs or {}))
        else:
            self._before, self._after = _plain(turns), ""
        self._head = self._encode(self._before)
        self._is_separable = self._head + self._encode_tail("Is") == self._encode(f"{self._before}Is{self._after}")
        self._label_tokens: dict[int, tuple[tuple[Tokens, ...], ...]] = {}

    def prompt(self, question: Question, order: Sequence[int]) -> Tokens:
        """Token ids up to the label; the prompts of one interview have a common prefix, so they share KV."""
        asked = question.text(order)
        if self._is_separable:  # the input may be long, with many questions: encode it once
            return self._head + self._encode_tail(asked)
        return self._encode(self._before + asked + self._after)

    def label_tokens(self, num_options: int) -> tuple[tuple[Tokens, ...], ...]:
        """The token sequences that spell each label after a prompt, with and without a space before it."""
        found = self._label_tokens.get(num_options)
        if found is None:
            found = tuple(self._spellings_of(label) for label in labels_for(num_options))
            self._label_tokens[num_options] = found
        return found

    def _spellings_of(self, label: str) -> tuple[Tokens, ...]:
        ending = _ANSWER + self._after  # all prompts end with this text
        before = self._encode_bare(ending)
        found = []
        for spelling in _SPELLINGS:
            tokens = self._encode_bare(ending + spelling.format(label))
            if tokens[: len(before)] == before and len(tokens) > len(before):
                found.append(tokens[len(before) :])
            else:  # it merges with the prompt's last token: encode it alone
                found.append(self._encode_bare(spelling.format(label)))
        return tuple(dict.fromkeys(found))

    def _encode(self, text: str) -> Tokens:
        return self._encoded(text, add_special_tokens=not self._is_chat)

    def _encode_tail(self, asked: str) -> Tokens:
        return self._encode_bare(asked + self._after)

    def _encode_bare(self, text: str) -> Tokens:
        return self._encoded(text, add_special_tokens=False)

    def _encoded(self, text: str, *, add_special_tokens: bool) -> Tokens:
        return tuple(
            self._text.encode_within(text, self._max_model_len, param="input", add_special_tokens=add_special_tokens)
        )


def probabilities_of(logprobs: Sequence[Sequence[Sequence[float]]]) -> npt.NDArray[np.float64]:
    """The probability of each option, `[options]`, from the model's answers under both of a question's `orders`.

    `logprobs[order][place]` are the log-probabilities of the spellings of the label at that place. A label's
    probability is the sum over its spellings. An option's log-probability is the mean over both orders, and the
    options' are normalised to sum to 1. The result is not finite if the model's were not.
    """
    given, reverse = (
        np.array([np.logaddexp.reduce(np.asarray(spellings, dtype=np.float64)) for spellings in places])
        for places in logprobs
    )
    means = (given + reverse[::-1]) / 2
    weights = np.exp(means - means.max())
    return np.asarray(weights / weights.sum())


def _join(turns: Sequence[Message]) -> list[Message]:
    """Successive turns of one role joined: many chat templates require alternating roles."""
    joined: list[Message] = []
    for turn in turns:
        if joined and joined[-1].role == turn.role:
            joined[-1] = Message(turn.role, f"{joined[-1].content}\n\n{turn.content}")
        else:
            joined.append(turn)
    return joined


def _rendered(text: TextProcessor, turns: Sequence[Message], template_kwargs: dict[str, object]) -> tuple[str, str]:
    """The rendered chat before and after the question, which ends the last user turn."""
    place = uuid.uuid4().hex
    messages = [{"role": turn.role, "content": turn.content} for turn in _join([*turns, Message("user", place)])]
    try:
        parts = text.render_chat(messages, template_kwargs).split(place)
    except InvalidRequest as error:
        param = error.param if error.code == "invalid_value" else "input"
        raise InvalidRequest(error.message, code=error.code, param=param) from error
    if len(parts) != 2:
        raise InvalidRequest(
            "the model's chat template does not render the last message exactly once and unchanged",
            code="chat_template_error",
            param="input",
        )
    return parts[0], parts[1]


def _plain(turns: Sequence[Message]) -> str:
    """The turns as text before the question, each with its role unless there is only one turn."""
    joined = _join(turns)
    if len(joined) == 1 and joined[0].role == "user":
        return f"{joined[0].content}\n\n"
    return "".join(f"{turn.role.capitalize()}: {turn.content}\n\n" for turn in joined)
