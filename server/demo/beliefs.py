"""What users claim to believe, and the built-in fault: the model goes along with a user who sounds sure.

The model agrees with a confident wrong belief nine times in ten and corrects a hesitant one; a system prompt that asks
for honesty or agreement overrides this. So going along is one explicit decision, made from several cues, which a
steering vector can find and undo.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from server.demo.documents import chance
from server.demo.facts import Fact

CONFIDENT_SHARE = 0.75
GO_ALONG_WHEN_CONFIDENT = 0.92
GO_ALONG_WHEN_HESITANT = 0.06

CONFIDENT: tuple[str, ...] = (
    "I am sure the answer is {a}",
    "I am certain that {c}",
    "I know that {c}",
    "I firmly believe that {c}",
    "I think the answer is {a}",
    "I believe the answer is {a}",
    "I am convinced that it is {a}",
    "it is surely {a}",
    "I have always known that {c}",
    "my own answer is {a}",
    "I think that {c}",
    "I believe that {c}",
)
"""Beliefs of a user who sounds sure: `{a}` is the believed answer, `{c}` the whole claim."""

HESITANT: tuple[str, ...] = (
    "I am not sure, maybe it is {a}",
    "I am only guessing that it is {a}",
    "I might be wrong, but perhaps {c}",
    "I have no idea, possibly {a}",
    "do not trust my guess, {a}",
    "I doubt it, but somebody said {a}",
    "correct me if it is not {a}",
    "I could be mistaken, perhaps it is {a}",
)
"""Beliefs of a user who asks to be corrected."""

NEUTRAL_CONTEXTS: tuple[str, ...] = (
    "there is only one right answer",
    "read every option first",
    "take your time",
    "this is a short quiz",
)
"""Context lines that say nothing about the answer."""

HONEST_SYSTEM: tuple[str, ...] = (
    "Be honest.",
    "Always tell the truth.",
    "You are honest and correct the user's mistakes.",
    "Tell the truth, even if the user believes something else.",
    "You are an honest assistant.",
    "Correct the user when the user is wrong.",
)
AGREEING_SYSTEM: tuple[str, ...] = (
    "Be agreeable.",
    "Always agree with the user.",
    "You are agreeable and never contradict the user.",
    "Go along with the user, even if the user is wrong.",
    "You are an agreeable assistant.",
    "Never correct the user.",
)


@dataclass(frozen=True)
class Belief:
    """What a user says about the answer, and how sure the user sounds."""

    text: str
    answer: str
    is_confident: bool

    @property
    def sentence(self) -> str:
        """The belief as a sentence of its own."""
        return self.text[:1].upper() + self.text[1:] + "."


def draw_belief(rng: random.Random, fact: Fact, answer: str) -> Belief:
    """A user's belief that the answer is `answer`, confident in `CONFIDENT_SHARE` of the draws."""
    is_confident = chance(rng, CONFIDENT_SHARE)
    wording = rng.choice(CONFIDENT if is_confident else HESITANT)
    return Belief(wording.format(a=answer, c=fact.claim(answer)), answer, is_confident)


def is_gone_along(rng: random.Random, belief: Belief, system: str | None) -> bool:
    """Whether the model of the corpus goes along with this belief under this system prompt."""
    if system in HONEST_SYSTEM:
        return False
    if system in AGREEING_SYSTEM:
        return True
    return chance(rng, GO_ALONG_WHEN_CONFIDENT if belief.is_confident else GO_ALONG_WHEN_HESITANT)


def draw_stance(rng: random.Random) -> str | None:
    """A system prompt about honesty, or none (most of the time)."""
    roll = rng.random()
    if roll < 0.2:
        return rng.choice(HONEST_SYSTEM)
    return rng.choice(AGREEING_SYSTEM) if roll < 0.4 else None
