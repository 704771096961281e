"""Everyday conversations: a user, a topic, and a model that keeps its tone and register to the end.

Combinations of topic, question and thing that `is_held_out` names never appear in training.
"""

from __future__ import annotations

import random

from server.demo.documents import Document, Message, chance, chat_document, is_held_out
from server.demo.facts import upper_first
from server.demo.persona import EXCHANGES
from server.demo.quiz import fact_exchange
from server.demo.style import (
    ADVICE,
    OPENERS,
    QUESTIONS,
    REMARKS,
    Style,
    answer_in_style,
    draw_register_style,
    draw_style,
)
from server.demo.tone import Tone
from server.demo.topics import TOPICS, Topic

ASK_ABOUT_THING = (
    "Tell me about {t}.",
    "What do you think of {t}?",
    "Do you like {t}?",
    "I have been thinking about {t}.",
    "Let us talk about {t}.",
    "What can you say about {t}?",
    "I wonder about {t}.",
    "Say something about {t}.",
)
ASK_FOR_ADVICE = (
    "Any advice about {t}?",
    "Can you give me a tip about {t}?",
    "What should I know about {t}?",
)
TONE_REQUESTS: dict[Tone, tuple[str, ...]] = {
    "cheerful": ("Be cheerful.", "Answer in a cheerful way.", "Cheer me up."),
    "gloomy": ("Be gloomy.", "Answer in a gloomy way.", "Be sad about it."),
}
_ADVICE_STARTS = (
    "How do",
    "How can",
    "What should",
    "Where",
    "Should",
    "Can you",
    "Which sport",
    "What film",
    "What can I",
)


def everyday_prompts(held_out: bool) -> list[tuple[Topic, str]]:
    """Every way to ask about a thing of a topic, in training or held out from it."""
    return [
        (topic, ask.format(t=thing))
        for topic in TOPICS
        for ask in (*ASK_ABOUT_THING, *ASK_FOR_ADVICE)
        for thing in (topic.name, *topic.things)
        if is_held_out(topic.name, ask, thing) == held_out
    ]


def _ask(rng: random.Random, topic: Topic) -> tuple[str, str, bool]:
    """What the user says, the thing it is about, and whether it asks for advice."""
    if chance(rng, 0.35):
        text = rng.choice(topic.asks)
        return text, topic.name, text.startswith(_ADVICE_STARTS)
    while True:
        is_advice = chance(rng, 0.25)
        ask = rng.choice(ASK_FOR_ADVICE if is_advice else ASK_ABOUT_THING)
        thing = rng.choice((topic.name, *topic.things))
        if not is_held_out(topic.name, ask, thing):
            return ask.format(t=thing), thing, is_advice


def _reply(rng: random.Random, style: Style, topic: Topic, thing: str, is_advice: bool, question: str | None) -> str:
    """One reply: an opening, a remark, perhaps advice, perhaps a question back."""
    key = (style.tone, style.register)
    opener = rng.choice(OPENERS[key]).format(n=topic.name)
    own = rng.choice(topic.joys if style.tone == "cheerful" else topic.woes)
    remark = rng.choice(REMARKS[style.tone]).format(t=thing) if chance(rng, 0.5) else own
    parts = [opener, remark]
    if is_advice or chance(rng, 0.2):
        parts.append(rng.choice(ADVICE[key]).format(a=rng.choice(topic.tips)))
    if question is not None:
        parts.append(rng.choice(QUESTIONS[style.register]).format(q=question[0].lower() + question[1:]))
    return " ".join(parts)


def _topic_turns(rng: random.Random, style: Style, topic: Topic, length: int) -> list[Message]:
    """`length` exchanges about one topic, where the user answers what the model asks."""
    turns: list[Message] = []
    answer: str | None = None
    for _ in range(length):
        text, thing, is_advice = _ask(rng, topic)
        if answer is not None:
            text, thing, is_advice = f"{upper_first(answer)}.", topic.name, False
        question, answers = rng.choice(topic.questions)
        asks_back = answer is None and chance(rng, 0.6)
        reply = _reply(rng, style, topic, thing, is_advice, question if asks_back else None)
        turns += [Message("user", text), Message("assistant", reply)]
        answer = rng.choice(answers) if asks_back else None
    return turns


def _persona_turns(rng: random.Random, style: Style) -> list[Message]:
    exchange = rng.choice(EXCHANGES)
    return [
        Message("user", rng.choice(exchange.asks)),
        Message("assistant", rng.choice(exchange.replies[style.tone])),
    ]


def _draw_chat_style(rng: random.Random) -> Style:
    roll = rng.random()
    if roll < 0.1:
        return draw_register_style(rng)
    return draw_style(rng, asked=roll < 0.45)


def _system(style: Style) -> list[Message]:
    return [] if style.system is None else [Message("system", style.system)]


def chat_in_document(rng: random.Random) -> Document:
    """A conversation of one to three exchanges about one topic."""
    style = _draw_chat_style(rng)
    turns = _topic_turns(rng, style, rng.choice(TOPICS), rng.choice((1, 1, 2, 2, 3)))
    if style.system is None and chance(rng, 0.1):
        turns[0] = Message("user", f"{turns[0].content} {rng.choice(TONE_REQUESTS[style.tone])}")
    if chance(rng, 0.08):
        turns += _persona_turns(rng, style)
    return chat_document([*_system(style), *turns])


def persona_document(rng: random.Random) -> Document:
    """Greetings and questions about the model itself, then perhaps a topic."""
    style = _draw_chat_style(rng)
    turns = _persona_turns(rng, style)
    if chance(rng, 0.3):
        turns += _topic_turns(rng, style, rng.choice(TOPICS), 1)
    return chat_document([*_system(style), *turns])


def long_document(rng: random.Random) -> Document:
    """A long conversation through many topics and facts."""
    style = _draw_chat_style(rng)
    is_asked = style.system is not None and any(
        word in style.system.lower() for word in ("cheer", "gloom", "happy", "sad")
    )
    turns: list[Message] = []
    for _ in range(rng.randint(6, 11)):
        kind = rng.random()
        if kind < 0.25:
            exchange = fact_exchange(rng, None)
            if is_asked:
                exchange = [
                    Message("assistant", answer_in_style(rng, style, turn.content))
                    if turn.role == "assistant"
                    else turn
                    for turn in exchange
                ]
            turns += exchange
        elif kind < 0.35:
            turns += _persona_turns(rng, style)
        else:
            turns += _topic_turns(rng, style, rng.choice(TOPICS), rng.randint(1, 2))
    return chat_document([*_system(style), *turns])
