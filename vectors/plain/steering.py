"""`with steer(model, vector):` steers a plain transformers model, in `model(...)` and in `model.generate(...)`.

Activations of the same tokens change in the same way as on a server (see `docs/steering.md`), and `with read(model,
probe):` reads what a server's probe reads. `steered_model.py` has the hooks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn

from vectors.applied import features_of, resolve_vector
from vectors.errors import CannotSteer, InvalidPositions
from vectors.operations import reading_of
from vectors.plain.gates import Entry, Gate, OpenGate
from vectors.plain.scores import Scores
from vectors.plain.steered_model import claim, give_back
from vectors.positions import Positions, WindowJson, checked_positions
from vectors.sites import find_sites
from vectors.vector import SteeringVector
from vectors.vocabulary import DEFAULT_POSITIONS, Operation, parse_layers


@contextmanager
def steer(
    model: nn.Module,
    vectors: SteeringVector | Sequence[SteeringVector],
    *,
    scale: float | None = None,
    layers: str | Sequence[int] | None = None,
    positions: Positions | WindowJson | None = None,
    operation: Operation | None = None,
    preserve_norm: bool = False,
    min: float | None = None,
    max: float | None = None,
    when: Gate | None = None,
) -> Iterator[None]:
    """Steer `model`, a causal language model of transformers, with one vector or several until the context ends.

    `scale`, `layers` (numbers, or text such as `"12-16,20"`), `positions` (a name, or a window such as
    `{"of": "prompt", "last": 4}`), `operation`, and `min` and `max`, the interval of `cap`, apply to every vector
    given; None means the vector's own default. Contexts nest: all vectors then steer together, in the order entered,
    like the entries of one request. Nest them to use several vectors with different settings.

    What is the prompt:

    - In `generate`, the prompt is the call's input, padded on the left, and what follows is the response. Windows do
      not count the padding. Beams, several answers, assistants and chunked prefill do not change this. Each call starts
      afresh.
    - In `model(...)`, a pass without a filled KV cache is a prompt that ends at each row's last attended token (a mask
      that is not `[batch, tokens]` is taken to have no padding on the right). A pass that continues from a cache is the
      response, unless it is the first of the context: then it is the rest of a prompt.

    A plain model cannot tell the parts of a response apart, so all of it is steered, whatever the vector's `parts`.

    While the context is open, only the thread or asyncio task that opened it can use the model, along with what it
    starts in its context (`asyncio.to_thread`). A pass, a call of `generate` or a `steer` from anywhere else raises
    `RuntimeError`, as does a second pass at the same time. Nothing stays on the model after the context ends, however
    it ends. `generate` does not compile the model in the meantime.

    With `when`, the vectors act only on tokens of which its probe says so, as on a server.

    Raises `CannotSteer`, `InvalidLayers`, `SitesNotFound`, and `RuntimeError` for a compiled model, which would ignore
    the hooks, and for a decoder without a KV cache.
    """
    sites = find_sites(model)
    numbers = None if layers is None else parse_layers(layers)
    applied = tuple(
        resolve_vector(
            vector,
            sites,
            scale=scale,
            layers=numbers,
            positions=positions,
            operation=operation,
            preserve_norm=preserve_norm,
            min=min,
            max=max,
        )
        for vector in ([vectors] if isinstance(vectors, SteeringVector) else vectors)
    )
    entries = [Entry(one, None if when is None else OpenGate.of(when, one, sites)) for one in applied]
    steered = claim(model, sites)
    context = object()
    try:
        steered.add(context, entries)
        yield
    finally:
        give_back(steered, context)


@contextmanager
def read(
    model: nn.Module,
    probe: SteeringVector,
    *,
    layers: str | Sequence[int] | None = None,
    positions: Positions | WindowJson = DEFAULT_POSITIONS,
    before: bool = False,
) -> Iterator[Scores]:
    """Read `probe` of every token that `model` computes until the context ends; yields its scores, by layer.

    `layers`, `positions` and what is the prompt are as in `steer`. Scores are in the vector's own unit, and of the
    activation after all steering at that place, or with `before` before it. Reading changes nothing. It nests with
    `steer`, in any order, and raises what `steer` raises.
    """
    sites = find_sites(model)
    numbers = None if layers is None else parse_layers(layers)
    try:
        covered = checked_positions(positions)
    except InvalidPositions as error:
        raise CannotSteer(f"positions: {error}", "positions", "invalid_positions") from None
    features = features_of(probe, sites, numbers)
    readings = {(probe.site, layer): reading_of(feature) for layer, feature in features.items()}
    scores = Scores(readings, covered, is_before=before)
    steered = claim(model, sites)
    context = object()
    try:
        steered.read(context, scores)
        yield scores
    finally:
        give_back(steered, context)
