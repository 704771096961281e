"""The shared vocabulary of vectors, requests and training: sites, operations, positions, parts, names, layers.

Each is declared here and nowhere else, with its limits. It loads no torch, so clients and the command line can use it.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Sequence
from typing import Literal, TypeAlias, get_args

from vectors.errors import InvalidLayers, InvalidVectorName

Site: TypeAlias = Literal["residual", "attention", "mlp", "post_attention_norm"]
"""A place in a decoder block; see `sites.py`."""

Place: TypeAlias = tuple[Site, int]
"""A (site, layer)."""

Operation: TypeAlias = Literal["add", "ablate", "clamp", "cap", "amplify"]
"""How a direction is applied: add it; remove, set or limit what the vector reads; or add it as often as it is read."""

Activation: TypeAlias = Literal["identity", "relu", "sigmoid", "step"]
"""The function of what a vector reads: none, its positive part, a probability, or 1 where it is positive, else 0."""

Latch: TypeAlias = Literal["token", "rest"]
"""How long a gate stays open: for the token whose probe says so, or from it to the end of the response."""

NamedPositions: TypeAlias = Literal["prompt", "response", "all"]
"""Which tokens are steered; `response` begins at the last prompt token. `positions.py` has windows beside these."""

Part: TypeAlias = Literal["reasoning", "content", "structured", "tool_calls"]
"""What a response token belongs to: the reasoning before the answer, the answer, an answer under a schema, a call."""

FileFormat: TypeAlias = Literal["safetensors", "gguf"]
"""A format in which vectors are written; `vectors.formats` also reads others."""

Convention: TypeAlias = Literal["as_applied", "as_derived", "one_based"]
"""How a file counts layers: where its library adds them, where it read them, or from 1."""

DefaultLayers: TypeAlias = Literal["all", "none"]
"""Where a vector steers if a request names no layers: at each of its own, or nowhere, so that layers must be named."""

SITES: tuple[Site, ...] = get_args(Site)
OPERATIONS: tuple[Operation, ...] = get_args(Operation)
LATCHES: tuple[Latch, ...] = get_args(Latch)
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)
POSITIONS: tuple[NamedPositions, ...] = get_args(NamedPositions)
PARTS: tuple[Part, ...] = get_args(Part)
FILE_FORMATS: tuple[FileFormat, ...] = get_args(FileFormat)
DEFAULT_LAYERS_CHOICES: tuple[DefaultLayers, ...] = get_args(DefaultLayers)
CONVENTIONS: tuple[Convention, ...] = get_args(Convention)

SITES_IN_ORDER: tuple[Site, ...] = ("attention", "post_attention_norm", "mlp", "residual")
"""The sites in the order in which a block computes them."""

DEFAULT_SITE: Site = "residual"
DEFAULT_OPERATION: Operation = "add"
DEFAULT_ACTIVATION: Activation = "identity"
DEFAULT_POSITIONS: NamedPositions = "response"
DEFAULT_SCALE = 1.0
DEFAULT_LAYERS: DefaultLayers = "all"
DEFAULT_PARTS: tuple[Part, ...] = ("reasoning", "content", "structured")
"""Tool calls are read by programs, so they are steered only on request."""

DEFAULT_FILE_FORMAT: FileFormat = "safetensors"
DEFAULT_CONVENTION: Convention = "as_applied"

MAX_RANK = 64
"""The most directions that a vector may have at one layer."""

MAX_LAYER = 4095
"""The largest number of a decoder block, counted from 0."""

MAX_SEED = 2**31 - 1
MAX_DESCRIPTION = 10_000
MAX_MODEL_ID = 500
MAX_METADATA_BYTES = 1 << 20
MAX_METADATA_DEPTH = 64

NAME_PATTERN = "[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
"""Valid names of vectors, wherever they are stored."""

MIN_REVISION_DIGITS = 6
"""The fewest leading hex digits of its hash that identify a revision."""

REVISION_PATTERN = f"[0-9a-fA-F]{{{MIN_REVISION_DIGITS},64}}"
"""How a revision is given: its hash, or the beginning of it."""

LAYERS_PATTERN = r"\s*\d+(-\d+)?\s*(,\s*\d+(-\d+)?\s*)*"
"""A list of layers as text: numbers and inclusive ranges, as in `12-16,20`."""

_NAME = re.compile(NAME_PATTERN)
_LAYER_RANGE = re.compile(r"(\d{1,6})(?:-(\d{1,6}))?")


def check_name(name: str) -> str:
    """`name`, if it is a valid name for a vector; raises `InvalidVectorName`."""
    if _NAME.fullmatch(name) is None:
        raise InvalidVectorName(name)
    return name


def parse_layers(layers: str | Sequence[int]) -> tuple[int, ...]:
    """`[12, 13]` or `"12-16,20"` (inclusive ranges) -> layers in the order given.

    Raises `InvalidLayers` for an empty, reversed, repeated or unreadable list, and beyond `MAX_LAYER`.
    """
    numbers = _layers_of_text(layers) if isinstance(layers, str) else [_layer(number) for number in layers]
    if not numbers:
        raise InvalidLayers("expected at least one layer, got an empty list")
    for number in numbers:
        if not 0 <= number <= MAX_LAYER:
            raise InvalidLayers(f"expected layers from 0 to {MAX_LAYER}, got {number:.6g}")
    if len(set(numbers)) != len(numbers):
        raise InvalidLayers("expected each layer once, got a repeated one")
    return tuple(numbers)


def _layer(number: int) -> int:
    try:
        return operator.index(number)
    except TypeError:
        raise InvalidLayers(f"expected whole numbers as layers, got {number!r:.40}") from None


def _layers_of_text(text: str) -> list[int]:
    numbers: list[int] = []
    for part in text.split(","):
        match = _LAYER_RANGE.fullmatch(part.strip())
        if match is None:
            raise InvalidLayers(f"expected numbers and ranges such as 12-16,20, got {part.strip()[:40]!r}")
        first = int(match[1])
        last = int(match[2]) if match[2] is not None else first
        if last < first:
            raise InvalidLayers(f"expected a range from low to high, got {first}-{last}")
        if last > MAX_LAYER:
            raise InvalidLayers(f"expected layers from 0 to {MAX_LAYER}, got {last}")
        if len(numbers) > MAX_LAYER:
            raise InvalidLayers("expected each layer once, got a repeated one")
        numbers.extend(range(first, last + 1))
    return numbers
