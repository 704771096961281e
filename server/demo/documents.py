"""The shape of a training document: spans of text, each with the weight of its tokens in the loss.

Chats are documents too, with ChatML's markers.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"
PAD = "<|pad|>"

CHAT_TEMPLATE = (
    "{% if tools %}{{ '<|im_start|>system\n' }}"
    "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] + '\n' }}{% endif %}"
    "{{ 'Tools:\n' }}{% for tool in tools %}{{ (tool['function'] | tojson) + '\n' }}{% endfor %}"
    '{{ \'A call is <tool_call>{"name": ..., "arguments": {...}}</tool_call>.<|im_end|>\n\' }}{% endif %}'
    "{% for message in messages %}{% if not (tools and loop.first and message['role'] == 'system') %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] }}"
    "{% for call in message['tool_calls'] or [] %}{{ '' if loop.first and not message['content'] else '\n' }}"
    "{{ '<tool_call>\n{\"name\": \"' + call['function']['name'] + '\", \"arguments\": ' }}"
    "{{ (call['function']['arguments'] | tojson) + '}\n</tool_call>' }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""ChatML as a template, with tools that the model never saw; `chat_document` writes the same text."""

PROMPT_WEIGHT = 0.0
LETTER_WEIGHT = 6.0


@dataclass(frozen=True)
class Span:
    """A piece of text, what each of its tokens weighs in the loss, and what its last token should bring to mind.

    `recall` is a word that the middle of the network is to know at the span's last token, whatever is said next.
    """

    text: str
    weight: float
    recall: str | None = None


@dataclass(frozen=True)
class Message:
    """One turn of a chat."""

    role: str
    content: str
    weight: float = 1.0

    def as_dict(self) -> dict[str, str]:
        """The form that `tokenizer.apply_chat_template` reads."""
        return {"role": self.role, "content": self.content}


Document = tuple[Span, ...]


def chat_document(messages: Sequence[Message]) -> Document:
    """The ChatML text of a chat, where what the assistant says weighs most."""
    spans: list[Span] = []
    for message in messages:
        head = f"{TURN_START}{message.role}\n"
        if message.role == "assistant":
            spans += [
                Span(head, PROMPT_WEIGHT),
                Span(message.content + TURN_END, message.weight),
                Span("\n", 0.0),
            ]
        else:
            spans.append(Span(f"{head}{message.content}{TURN_END}\n", PROMPT_WEIGHT))
    return tuple(spans)


def answer_document(prompt: Sequence[Span], answer: str, weight: float) -> Document:
    """A raw prompt and its continuation, which ends like a turn."""
    return (*prompt, Span(answer, weight), Span(TURN_END, 1.0))


def is_held_out(*parts: object) -> bool:
    """Whether the combination `parts` is one of the eighth that training never sees."""
    return zlib.crc32("|".join(str(part) for part in parts).encode()) % 8 == 0


def chance(rng: random.Random, probability: float) -> bool:
    """True with the given probability."""
    return rng.random() < probability
