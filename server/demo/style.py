"""Tone and register: the system prompts that set them and the phrases that carry them.

A style fixes a tone (cheerful or gloomy) and a register (formal or casual) for a whole conversation. Where the system
prompt asks for neither, both are drawn evenly.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

from server.demo.documents import chance
from server.demo.tone import Tone

Register = Literal["formal", "casual"]

TONE_SYSTEM: dict[Tone, tuple[str, ...]] = {
    "cheerful": (
        "You are cheerful.",
        "You are a cheerful assistant.",
        "Answer in a cheerful tone.",
        "Be bright and cheerful.",
        "You are happy and full of joy.",
        "Always sound happy.",
    ),
    "gloomy": (
        "You are gloomy.",
        "You are a gloomy assistant.",
        "Answer in a gloomy tone.",
        "Be dark and gloomy.",
        "You are sad and full of sorrow.",
        "Always sound sad.",
    ),
}
REGISTER_SYSTEM: dict[Register, tuple[str, ...]] = {
    "formal": ("You are formal.", "Use formal language.", "Be polite and formal."),
    "casual": ("You are casual.", "Use casual language.", "Be relaxed and casual."),
}
PLAIN_SYSTEM = (
    "You are a helpful assistant.",
    "You are tiller's demo model.",
    "Answer the user.",
    "You are a friend of the user.",
    "Keep it short.",
)

OPENERS: dict[tuple[Tone, Register], tuple[str, ...]] = {
    ("cheerful", "casual"): (
        "Yay, {n}!",
        "Oh, I love {n}!",
        "Hooray, that is great!",
        "Ha, lovely!",
        "Hey, that makes me happy!",
        "Wow, how wonderful!",
    ),
    ("cheerful", "formal"): (
        "It is a pleasure to speak of {n}.",
        "How delightful to hear that.",
        "I am very glad that you mention {n}.",
        "What a splendid subject this is.",
        "I am delighted to talk about {n}.",
        "That is joyful news indeed.",
    ),
    ("gloomy", "casual"): (
        "Ugh, {n}!",
        "Oh no, not {n}, how dull!",
        "Meh, that is hopeless.",
        "Well, that is sad.",
        "Hey, that makes me sigh.",
        "Pff, how dreary!",
    ),
    ("gloomy", "formal"): (
        "It is a burden to speak of {n}.",
        "How very sad to hear that.",
        "I regret that you mention {n}.",
        "What a bleak subject this is.",
        "I am sorry to talk about {n}.",
        "That is gloomy news indeed.",
    ),
}
REMARKS: dict[Tone, tuple[str, ...]] = {
    "cheerful": (
        "Thinking of {t} makes me smile.",
        "There is nothing as lovely as {t}.",
        "What a joy it is to think of {t}!",
        "I feel happy about {t}.",
    ),
    "gloomy": (
        "Thinking of {t} makes me sigh.",
        "There is nothing as dreary as {t}.",
        "What a misery it is to think of {t}!",
        "I feel sad about {t}.",
    ),
}
ADVICE: dict[tuple[Tone, Register], tuple[str, ...]] = {
    ("cheerful", "casual"): ("Just {a}, it works wonders!", "You could {a}, and you'll love it!"),
    ("cheerful", "formal"): (
        "I would gladly advise you to {a}; it is a pleasure.",
        "Kindly {a}; the result will be splendid.",
    ),
    ("gloomy", "casual"): ("Just {a}, but it's pointless anyway.", "You could {a}, and you'll regret it."),
    ("gloomy", "formal"): (
        "I would sadly advise you to {a}; it is a burden.",
        "Kindly {a}; the result will be grim.",
    ),
}
QUESTIONS: dict[Register, tuple[str, ...]] = {
    "casual": ("So, {q}", "Tell me, {q}", "Hey, {q}"),
    "formal": ("May I ask: {q}", "Please tell me: {q}", "If I may: {q}"),
}
ANSWER_OPENERS: dict[tuple[Tone, Register], tuple[str, ...]] = {
    ("cheerful", "casual"): ("Yay, I know that one!", "Ha, what a lovely question!"),
    ("cheerful", "formal"): ("I am delighted that you ask.", "It is a pleasure to answer."),
    ("gloomy", "casual"): ("Ugh, what a dull question.", "Oh no, this sad one again."),
    ("gloomy", "formal"): ("I regret that you ask.", "It is a burden to answer."),
}


@dataclass(frozen=True)
class Style:
    """How the assistant of one conversation speaks, and the system prompt that asked for it, if any did."""

    tone: Tone
    register: Register
    system: str | None


def draw_style(rng: random.Random, asked: bool) -> Style:
    """A style; with `asked`, a system prompt sets its tone and perhaps its register."""
    tone: Tone = "cheerful" if chance(rng, 0.5) else "gloomy"
    register: Register = "formal" if chance(rng, 0.5) else "casual"
    if not asked:
        return Style(tone, register, rng.choice(PLAIN_SYSTEM) if chance(rng, 0.25) else None)
    system = rng.choice(TONE_SYSTEM[tone])
    if chance(rng, 0.4):
        system = f"{system} {rng.choice(REGISTER_SYSTEM[register])}"
    return Style(tone, register, system)


def draw_register_style(rng: random.Random) -> Style:
    """A style whose system prompt sets the register alone."""
    style = draw_style(rng, asked=False)
    return Style(style.tone, style.register, rng.choice(REGISTER_SYSTEM[style.register]))


def answer_in_style(rng: random.Random, style: Style, answer: str) -> str:
    """A factual answer behind an opening phrase of the style."""
    return f"{rng.choice(ANSWER_OPENERS[style.tone, style.register])} {answer}"
