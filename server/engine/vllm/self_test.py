"""What is checked of the steering at every start, on the model itself: it is not seen when it fails.

A stale compile cache, a runner that does not ask for the rows, or a family that ignores the hook: each would serve
answers that look well and are not steered.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from server.engine.protocol import Engine
from server.engine.queries import branch
from server.engine.refusal import ModelRefused
from server.steering.plan import UNSTEERED, PlanEntry, SteeringPlan
from vectors.applied import AppliedVector
from vectors.vocabulary import PARTS, Place, Site

_PROBE = (1, 2, 3)
_SECONDS = 600.0
_STRONG = 1e4
"""Times a random direction: far beyond what an activation is."""


def check_steering(engine: Engine) -> None:
    """Raise `ModelRefused` unless steering at every place of the model changes what comes next, and nothing else does.

    All places are probed in one batch with an unsteered prompt, which must come out as it does alone.
    """
    info = engine.info
    tokens = tuple(range(min(32, info.vocab_size)))
    prompt = tuple(token % info.vocab_size for token in _PROBE)
    alone = branch(engine, prompt, tokens, [UNSTEERED]).result(_SECONDS)[0]
    places: list[Place] = [(cast(Site, site), layer) for site in info.sites for layer in range(info.num_layers)]
    plans = [UNSTEERED, *(_probing(place, info.hidden_size, number) for number, place in enumerate(places))]
    unsteered, *steered = branch(engine, prompt, tokens, plans).result(_SECONDS)
    if not torch.allclose(unsteered, alone, rtol=1e-2, atol=1e-2 * float(alone.abs().max())):
        raise ModelRefused("a request without steering was changed by others with steering; please report this model")
    for place, logits in zip(places, steered, strict=True):
        if _is_same(logits, unsteered):
            site, layer = place
            model = f"{info.architecture} of vLLM"
            raise ModelRefused(f"steering site {site} of layer {layer} changes nothing in {model}; use --engine torch")
    keys = {plan.zones(len(prompt)).fingerprint_of_span(0, len(prompt)) for plan in plans}
    if len(keys) != len(plans):
        raise ModelRefused("different steering has the same key in the prefix cache; please report this")


def _is_same(one: Tensor, other: Tensor) -> bool:
    return bool(one.isfinite().all()) and torch.allclose(one, other, rtol=1e-3, atol=1e-3 * float(other.abs().max()))


def _probing(place: Place, hidden_size: int, number: int) -> SteeringPlan:
    """A huge shift at `place`, at the last token of the prompt."""
    site, layer = place
    direction = torch.randn(hidden_size, generator=torch.Generator().manual_seed(number)) * _STRONG
    applied = AppliedVector(site, (layer,), 1.0, "response", "add", False, {layer: direction})
    return SteeringPlan([PlanEntry("", f"probe-{number}", applied, PARTS)])
