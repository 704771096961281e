"""Grammars of a few lines, for what no library could know."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from server.engine.grammar import GrammarFailed
from tests.families import VOCABULARY

END = 100


class Rule:
    """A grammar from a function: the tokens that may come after those that came; none: the answer is complete."""

    def __init__(self, may_follow: Callable[[tuple[int, ...]], Sequence[int]]) -> None:
        self.may_follow = may_follow
        self.num_started = 0

    def start(self) -> _RuleState:
        self.num_started += 1
        return _RuleState(self)


@dataclass
class _RuleState:
    rule: Rule
    so_far: tuple[int, ...] = ()

    @property
    def is_complete(self) -> bool:
        return not self.rule.may_follow(self.so_far)

    def fill_mask(self, words: Tensor) -> None:
        for token in self.rule.may_follow(self.so_far):
            bit = 1 << token % 32
            words[token // 32] |= bit - 2**32 if bit == 2**31 else bit  # words are signed

    def accept(self, token_id: int) -> None:
        if token_id not in self.rule.may_follow(self.so_far):
            raise GrammarFailed(f"{token_id} may not follow {self.so_far}")
        self.so_far = (*self.so_far, token_id)


def exactly(*tokens: int) -> Rule:
    return Rule(lambda so_far: tokens[len(so_far) : len(so_far) + 1])


EVEN = Rule(lambda so_far: range(0, VOCABULARY - 1, 2))
ODD_AND_END = Rule(lambda so_far: [*range(1, VOCABULARY, 2), END])


@dataclass
class _BreaksState(_RuleState):
    after: int = 0

    def fill_mask(self, words: Tensor) -> None:
        if len(self.so_far) == self.after:
            raise GrammarFailed("it has grown too large")
        super().fill_mask(words)


@dataclass
class Breaks:
    """Allows everything, and gives up on the mask after so many tokens."""

    after: int

    def start(self) -> _BreaksState:
        return _BreaksState(Rule(lambda so_far: range(VOCABULARY)), after=self.after)
