"""The clients that change vectors: put, swap, roll back, delete, and look at what is there."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from server.demo import MODEL_DIR
from tests.soak.ledger import Ledger, Name, SoakFailed
from tests.soak.life import BUSY, Life
from vectors.formats import decode
from vectors.formats.safetensors import encode_safetensors
from vectors.vector import SteeringVector

PATH = "/v1/steering/vectors"
SCALES = (0.6, 1.0)
SHAPE = json.loads((MODEL_DIR / "config.json").read_bytes())


@dataclass(frozen=True)
class Content:
    """A vector as it is uploaded. `number`: which directions it has; `scale`: its default scale."""

    number: int
    scale: float
    encoded: bytes
    revision: str


def make_contents(num_directions: int = 4, strength: float = 80.0) -> list[Content]:
    """All directions with all scales, at every block, so strong that answers differ."""
    contents = []
    for number, scale in itertools.product(range(num_directions), SCALES):
        choose = torch.Generator().manual_seed(number)
        direction = torch.randn(SHAPE["hidden_size"], generator=choose)
        direction *= strength / direction.norm()
        vector = SteeringVector(dict.fromkeys(range(SHAPE["num_hidden_layers"]), direction), default_scale=scale)
        contents.append(Content(number, scale, encode_safetensors(vector), vector.revision))
    return contents


class VectorKeeper:
    """The only one who changes a vector of one name, so that it knows what must be there."""

    name = "changes and checks of vectors"

    def __init__(self, ledger: Ledger, vector: str, contents: Sequence[Content], seed: int) -> None:
        self.vector = vector
        self._ledger = ledger
        self._contents = {content.revision: content for content in contents}
        self._choose = random.Random(seed)

    async def act(self, life: Life) -> None:
        await asyncio.sleep(0.1)  # others have a turn
        known = self._ledger.vectors.get(self.vector)
        if known is None:
            return await self._put(life, None)
        acts = [self._put] * 4 + [self._scale] * 2 + [self._roll_back] * 2 + [self._delete] + [self._look] * 3
        return await self._choose.choice(acts)(life, known)

    async def _put(self, life: Life, known: Name | None) -> None:
        content = self._choose.choice(list(self._contents.values()))
        after = Name.put(known, content.revision)
        await self._change(life, after, "PUT", "", content=content.encoded, expected=(201 if known is None else 200,))

    async def _scale(self, life: Life, known: Name) -> None:
        current = self._contents[known.current]
        scale = self._choose.choice(SCALES)
        (content,) = (
            other for other in self._contents.values() if (other.number, other.scale) == (current.number, scale)
        )
        await self._change(life, Name.put(known, content.revision), "PATCH", "", json={"default_scale": scale})

    async def _roll_back(self, life: Life, known: Name) -> None:
        revision = self._choose.choice(known.history)
        await self._change(life, known.rolled_back(revision), "POST", "/rollback", json={"revision": revision})

    async def _delete(self, life: Life, known: Name) -> None:
        await self._change(life, None, "DELETE", "")

    async def _change(self, life: Life, after: Name | None, method: str, action: str, **options: Any) -> None:
        self._ledger.begin_change(self.vector, after)
        reply = await life.ask(method, f"{PATH}/{self.vector}{action}", **options)
        is_made = reply.status_code not in BUSY
        if is_made and after is not None and reply.json()["revision"] != after.current:
            raise SoakFailed(f"{method} {self.vector}: expected {after.current}, got {reply.text[:300]}")
        self._ledger.end_change(self.vector, is_made=is_made)

    async def _look(self, life: Life, known: Name) -> None:
        found = await read_vector(life, self.vector)
        if found != known:
            raise SoakFailed(f"the vector {self.vector}: expected {known}, found {found}")
        await check_content(life, self.vector, self._choose.choice(known.history))


async def read_vector(life: Life, name: str) -> Name:
    """What the server says of a vector."""
    shown = await life.read(f"{PATH}/{name}")
    return Name(shown["revision"], tuple(entry["revision"] for entry in shown["history"]))


async def check_content(life: Life, name: str, revision: str) -> None:
    """Raises `SoakFailed` unless the file of a revision has its hash."""
    reply = await life.ask("GET", f"{PATH}/{name}/content", params={"revision": revision})
    if reply.status_code in BUSY:
        return
    found = decode(reply.content, num_layers=SHAPE["num_hidden_layers"], hidden_size=SHAPE["hidden_size"])
    if found.revision != revision:
        sha256 = hashlib.sha256(reply.content).hexdigest()
        raise SoakFailed(f"the vector {name}, revision {revision}: its file has {found.revision} (SHA-256 {sha256})")


async def read_vectors(life: Life) -> dict[str, Name]:
    """Every vector that is there, each of its files read."""
    found = {}
    for entry in await life.read_pages(PATH):
        if entry["object"] != "steering.vector":
            raise SoakFailed(f"a vector is damaged: {entry}")
        found[entry["name"]] = name = await read_vector(life, entry["name"])
        for revision in name.history:
            await check_content(life, entry["name"], revision)
    return found
