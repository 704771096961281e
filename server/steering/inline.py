"""Directions that a request brings itself, `{"residual.4": base64 of little-endian float32}`, as vectors.

They are checked as an upload is, and their size before they are decoded. The vectors of the latest are remembered by
the hash of the content, so that a conversation decodes its directions once.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import re
import threading
from collections import OrderedDict
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from vectors.applied import SteerableModel
from vectors.errors import InvalidVector
from vectors.vector import SteeringVector
from vectors.vocabulary import SITES, Site

PLACE_PATTERN = rf"({'|'.join(SITES)})\.(0|[1-9][0-9]{{0,3}})"
"""How a direction's place is written: its site and its layer."""

_PLACE = re.compile(PLACE_PATTERN)
_MAX_REMEMBERED_BYTES = 64 << 20


def decoded_direction(text: str, hidden_size: int) -> Tensor | None:
    """Float32 `[hidden_size]` of base64 of little-endian float32; None for anything else, found by its length first."""
    num_bytes = hidden_size * 4
    if len(text) != -(-num_bytes // 3) * 4:
        return None
    with contextlib.suppress(ValueError):  # not base64
        data = base64.b64decode(text, validate=True)
        if len(data) == num_bytes:
            return torch.from_numpy(np.frombuffer(data, dtype="<f4").astype(np.float32))
    return None


class InlineVectors:
    """The vectors of directions that came with requests, up to 64 MiB of the latest. Safe from any thread."""

    def __init__(self) -> None:
        self._vectors: OrderedDict[bytes, SteeringVector] = OrderedDict()
        self._num_bytes = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._vectors)

    def get(self, directions: Mapping[str, str], model: SteerableModel) -> SteeringVector:
        """The vector of `directions` for `model`. Raises `InvalidVector`, whose message names what is wrong."""
        if not 0 < len(directions) <= model.num_layers:
            raise InvalidVector(f"expected directions for 1 to {model.num_layers} layers, got {len(directions)}")
        longest = max(map(len, directions.values()))
        if longest > model.hidden_size * 8 or max(map(len, directions)) > 80:  # before anything is hashed
            raise InvalidVector(f"expected base64 of {model.hidden_size} little-endian float32 numbers for each layer")
        digest = hashlib.sha256("\n".join(f"{name} {directions[name]}" for name in sorted(directions)).encode())
        key = digest.digest()
        with self._lock:
            found = self._vectors.get(key)
            if found is not None:
                self._vectors.move_to_end(key)
                return found
        vector = _vector(directions, model)
        with self._lock:
            if key not in self._vectors:
                self._vectors[key] = vector
                self._num_bytes += _size(vector)
            while self._num_bytes > _MAX_REMEMBERED_BYTES:
                self._num_bytes -= _size(self._vectors.popitem(last=False)[1])
        return vector


def _vector(directions: Mapping[str, str], model: SteerableModel) -> SteeringVector:
    found: dict[int, Tensor] = {}
    sites: set[Site] = set()
    for name, text in directions.items():
        match = _PLACE.fullmatch(name)
        if match is None:
            raise InvalidVector(
                f"expected places such as residual.4, of the sites {', '.join(SITES)}, got {name!r}; a vector with "
                "read directions has to be uploaded"
            )
        direction = decoded_direction(text, model.hidden_size)
        if direction is None:
            raise InvalidVector(f"{name}: expected base64 of {model.hidden_size} little-endian float32 numbers")
        sites |= {site for site in SITES if site == match[1]}
        found[int(match[2])] = direction
    if len(sites) > 1:
        raise InvalidVector(f"expected directions at one site, got {', '.join(sorted(sites))}; list an entry for each")
    vector = SteeringVector(found, site=sites.pop())
    vector.fit(model.num_layers, model.hidden_size, model.sites)
    return vector


def _size(vector: SteeringVector) -> int:
    return sum(direction.nbytes for direction in vector.directions.values())
