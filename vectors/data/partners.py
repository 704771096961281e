"""Which text of one class is paired with which of the other, and what the pairs have in common."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Kin:
    """What a text shares with others: its prompt, empty if it has none, and its group."""

    prompt: Hashable
    group: str | None


def couples_of(wanted: Sequence[Kin], others: Sequence[Kin]) -> list[tuple[int, int]]:
    """Pairs of indices, each text once, in the order of `wanted`.

    Texts with the same prompt are paired first, then those of the same group. After that groups are paired one with
    one, the largest first, and what is left of them with texts of no group, so that this links no more than two groups;
    what then is left of groups stays alone.
    """
    partner: dict[int, int] = {}
    if any(other.prompt for other in others):
        _match([kin.prompt for kin in wanted], [kin.prompt for kin in others], partner)
    _match([kin.group for kin in wanted], [kin.group for kin in others], partner)
    own, their = _left_by_group(wanted, partner.keys()), _left_by_group(others, partner.values())
    own_free, their_free = own.pop(None, deque()), their.pop(None, deque())
    for one, other in zip(_largest_first(own), _largest_first(their), strict=False):
        while one and other:
            partner[one.popleft()] = other.popleft()
    own_left = deque(sorted(index for group in own.values() for index in group))
    their_left = deque(sorted(index for group in their.values() for index in group))
    for one, other in ((own_left, their_free), (own_free, their_left), (own_free, their_free)):
        while one and other:
            partner[one.popleft()] = other.popleft()
    return sorted(partner.items())


def linked_groups(couples: Sequence[tuple[str | None, str | None]]) -> list[str | None]:
    """A group for each couple: the same one for couples that share a group, directly or through others.

    It is named after the first of its groups; None for a couple without any.
    """
    above: dict[str, str] = {}

    def top(group: str) -> str:
        while above.setdefault(group, group) != group:
            group = above[group]
        return group

    for one, other in couples:
        if one is not None and other is not None and top(one) != top(other):
            above[top(other)] = top(one)
    return [None if (group := one if one is not None else other) is None else top(group) for one, other in couples]


def _match(wanted: Sequence[Hashable], others: Sequence[Hashable], partner: dict[int, int]) -> None:
    """Pair those that have no partner yet and have the same key, unless it is None."""
    waiting: dict[Hashable, deque[int]] = defaultdict(deque)
    taken = set(partner.values())
    for index, key in enumerate(others):
        if index not in taken and key is not None:
            waiting[key].append(index)
    for index, key in enumerate(wanted):
        if index not in partner and waiting.get(key):
            partner[index] = waiting[key].popleft()


def _left_by_group(texts: Sequence[Kin], taken: Iterable[int]) -> dict[str | None, deque[int]]:
    gone = set(taken)
    left: dict[str | None, deque[int]] = defaultdict(deque)
    for index, kin in enumerate(texts):
        if index not in gone:
            left[kin.group].append(index)
    return left


def _largest_first(groups: dict[str | None, deque[int]]) -> list[deque[int]]:
    return sorted(groups.values(), key=len, reverse=True)
