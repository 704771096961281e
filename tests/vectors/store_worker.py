"""Puts, rolls back and removes in a store until killed, saying each change before and after it.

The parent imports torch once and forks a child for each line of stdin, `folder seed`. A child says `child` and its
process id, `open` once it has the store, then `begin name state` and `done name state` for each change, where the state
is the revision that the name will have, or `-` when it goes; when it is dead the parent says `ended-child`.
"""

from __future__ import annotations

import random
from pathlib import Path

import torch

from tests.killing import fork_for_every_line, say
from vectors.errors import VectorNotFound
from vectors.store import VectorStore
from vectors.vector import SteeringVector

torch.set_num_threads(1)
NAMES = ("one", "two", "three")


def vector(number: int) -> SteeringVector:
    """Different lengths, so that a torn or mixed file cannot pass for another."""
    return SteeringVector({0: torch.full((8 + number,), float(number + 1))}, description=f"number {number}")


def work(root: Path, seed: int) -> None:
    chance = random.Random(seed)
    with VectorStore(root) as store:
        say("open")
        while True:
            name = chance.choice(NAMES)
            kind = chance.random()
            try:
                if kind < 0.6:
                    new = vector(chance.randrange(12))
                    say("begin", name, new.revision)
                    store.put(name, new)
                    say("done", name, new.revision)
                elif kind < 0.85:
                    revision = chance.choice(store.history(name)).revision
                    say("begin", name, revision)
                    store.rollback(name, revision)
                    say("done", name, revision)
                elif store.history(name):
                    say("begin", name, "-")
                    store.remove(name)
                    say("done", name, "-")
            except VectorNotFound:
                continue


if __name__ == "__main__":
    fork_for_every_line(work)
