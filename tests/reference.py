"""Independent references for the engine's tests: plain transformers models, plain hooks, slow loops.

Nothing here uses tiller's code: the semantics of sites, positions and operations are written out a second time, from
the design, on full forward passes without a KV cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Steer:
    """One steering entry in the plainest words: `direction` at `layer` and `site`.

    `positions` may be a window: of what, its first token, and the one after its last; the first may be counted from the
    end as a negative number. With `read` of its own, both may be `[rank, hidden]`.
    """

    direction: Tensor
    layer: int
    site: str = "residual"
    scale: float = 1.0
    positions: str | tuple[str, int, int | None] = "response"
    operation: str = "add"
    preserve_norm: bool = False
    low: float | None = None
    high: float | None = None
    read: Tensor | None = None
    bias: float = 0.0
    activation: str = "identity"
    parts: tuple[str, ...] = ("reasoning", "content", "structured")
    gate: Gate | None = None


@dataclass(frozen=True)
class Gate:
    """When an entry acts: `probe` is read at its place, before the steering there if the entry acts at that place."""

    probe: Steer
    threshold: float
    is_above: bool = True
    sharpness: float | None = None
    latch: str = "token"


PartOf = Callable[[Sequence[int]], str]
"""The part that the next token belongs to, after these tokens of the response."""


def _content_only(response: Sequence[int]) -> str:
    return "content"


def site_module(model: nn.Module, site: str, layer: int) -> nn.Module:
    """The module whose output is `site` of `layer`, by the names of each family's code."""
    inner: Any = getattr(model, "model", None) or model.gpt_neox
    block: nn.Module = inner.layers[layer]
    if site == "residual":
        return block
    names = {
        "attention": ("self_attn", "attention", "linear_attn", "conv", "mamba"),
        "mlp": ("mlp", "block_sparse_moe", "feed_forward"),
        "post_attention_norm": ("post_attention_layernorm", "ffn_norm", "pre_ff_layernorm"),
    }[site]
    return block.get_submodule(next(name for name in names if hasattr(block, name)))


def _activation(output: object) -> Tensor:
    """What a module gives: a tensor, or a tuple that begins with it."""
    first = output[0] if isinstance(output, tuple) else output
    assert isinstance(first, Tensor)
    return first


def _in_scope(entry: Steer, position: int, num_prompt: int, part: str) -> bool:
    of, start, end = entry.positions if isinstance(entry.positions, tuple) else (entry.positions, 0, None)
    if position < num_prompt and of in ("prompt", "all"):
        first = start if start >= 0 else max(0, num_prompt + start)
        if position >= first and (end is None or position < end):
            return True
    number = position - (num_prompt - 1)
    is_there = number >= start and (end is None or number < end)
    return of in ("response", "all") and number >= 0 and is_there and part in entry.parts


def written(found: float, entry: Steer) -> float:
    """How often the operation adds the direction where the vector reads `found`."""
    match entry.operation:
        case "ablate":
            return -entry.scale * found
        case "amplify":
            return entry.scale * found
        case "clamp":
            return entry.scale - found
        case "cap":
            kept = found if entry.low is None else max(found, entry.low)
            kept = kept if entry.high is None else min(kept, entry.high)
            return entry.scale * (kept - found)
    raise ValueError(entry.operation)


def score(h: Tensor, entry: Steer, row: Any = ...) -> float:
    """What the entry's vector reads of `[hidden]`, in its own unit; `row` picks one of several directions."""
    direction = entry.direction[row].double()
    read = direction / (direction @ direction) if entry.read is None else entry.read[row].double()
    found = float(h.double() @ read) + entry.bias
    match entry.activation:
        case "identity":
            return found
        case "relu":
            return max(found, 0.0)
        case "sigmoid":
            return 1 / (1 + math.exp(-found))
        case "step":
            return float(found > 0)
    raise ValueError(entry.activation)


def opened(gate: Gate, read: Sequence[float], in_scope: Sequence[bool]) -> list[float]:
    """How far the gate is open at each token, given what its probe reads of each."""
    found: list[float] = []
    is_latched = False
    for reading, is_in in zip(read, in_scope, strict=True):
        beyond = (reading - gate.threshold) * (1 if gate.is_above else -1)
        value = float(beyond > 0) if gate.sharpness is None else 1 / (1 + math.exp(-gate.sharpness * beyond))
        found.append((1.0 if is_latched else value) if is_in else 0.0)
        is_latched = is_latched or (gate.latch == "rest" and is_in and value > 0.5)
    return found


def steered(
    activation: Tensor,
    entries: Sequence[Steer],
    num_prompt: int,
    parts: Sequence[str],
    opening: Callable[[Steer, int], float] = lambda entry, position: 1.0,
) -> Tensor:
    """Apply the entries of one place to `[tokens, hidden]`, token by token, in float32.

    `opening`: how far an entry's gate is open at a position.
    """
    result = activation.clone()
    for position in range(activation.shape[0]):
        active = [entry for entry in entries if _in_scope(entry, position, num_prompt, parts[position])]
        before = activation[position].float()
        h = before
        for entry in active:
            if entry.operation == "add":
                h = h + opening(entry, position) * entry.scale * entry.direction.float()
        for entry in active:
            if entry.operation == "add":
                continue
            rows = range(len(entry.direction)) if entry.direction.dim() == 2 else (...,)
            reading = h  # before any of the vector's directions writes
            for row in rows:
                change = written(score(reading, entry, row), entry) * entry.direction[row].float()
                h = h + opening(entry, position) * change
        if any(entry.preserve_norm and opening(entry, position) > 0 for entry in active):
            h = h * (before.norm() / h.norm())
        result[position] = h.to(activation.dtype)
    return result


def _install(
    model: nn.Module, steers: Sequence[Steer], num_prompt: int, parts: Sequence[str]
) -> list[torch.utils.hooks.RemovableHandle]:
    handles = []
    read: dict[int, list[float]] = {}
    """What the gate of an entry reads of each token, by the entry's place in `steers`."""

    def gate_hook(number: int, probe: Steer) -> Callable[[nn.Module, object, object], None]:
        def hook(module: nn.Module, args: object, output: object) -> None:
            activation = _activation(output)
            read[number] = [score(row, probe) for row in activation.reshape(-1, activation.shape[-1])]

        return hook

    def install_gates(*, before: bool) -> None:
        for number, steer in enumerate(steers):
            if steer.gate is not None:
                probe = steer.gate.probe
                if before == ((probe.site, probe.layer) == (steer.site, steer.layer)):
                    module = site_module(model, probe.site, probe.layer)
                    handles.append(module.register_forward_hook(gate_hook(number, probe)))

    def opening(entry: Steer, position: int) -> float:
        if entry.gate is None:
            return 1.0
        number = next(number for number, steer in enumerate(steers) if steer is entry)
        found = read[number]
        in_scope = [_in_scope(entry, place, num_prompt, parts[place]) for place in range(len(found))]
        return opened(entry.gate, found, in_scope)[position]

    install_gates(before=True)
    for site, layer in {(steer.site, steer.layer) for steer in steers}:
        here = [steer for steer in steers if (steer.site, steer.layer) == (site, layer)]

        def hook(module: nn.Module, args: object, output: object, here: list[Steer] = here) -> object:
            activation = _activation(output)
            tokens = activation.reshape(-1, activation.shape[-1])
            changed = steered(tokens, here, num_prompt, parts, opening).view_as(activation)
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        handles.append(site_module(model, site, layer).register_forward_hook(hook))
    install_gates(before=False)
    return handles


@torch.no_grad()
def steered_logits(
    model: nn.Module,
    tokens: Sequence[int],
    steers: Sequence[Steer] = (),
    num_prompt: int | None = None,
    part_of: PartOf = _content_only,
) -> Tensor:
    """Logits `[tokens, vocabulary]` of one full forward pass without a KV cache."""
    num_prompt = len(tokens) if num_prompt is None else num_prompt
    parts = [part_of(tokens[num_prompt : max(num_prompt, position + 1)]) for position in range(len(tokens))]
    handles = _install(model, steers, num_prompt, parts)
    try:
        logits: Tensor = model(input_ids=torch.tensor([list(tokens)]), use_cache=False).logits
        return logits[0].float()
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def scores(
    model: nn.Module,
    tokens: Sequence[int],
    probe: Steer,
    steers: Sequence[Steer] = (),
    num_prompt: int | None = None,
    *,
    before: bool = False,
) -> list[float]:
    """What `probe` reads of each token in one full pass under `steers`, after the steering at its place or before."""
    num_prompt = len(tokens) if num_prompt is None else num_prompt
    found: list[float] = []

    def read(module: nn.Module, args: object, output: object) -> None:
        activation = _activation(output)
        found.extend(score(row, probe) for row in activation.reshape(-1, activation.shape[-1]))

    module = site_module(model, probe.site, probe.layer)
    handles = [module.register_forward_hook(read)] if before else []
    handles += _install(model, steers, num_prompt, ["content"] * len(tokens))
    handles += [] if before else [module.register_forward_hook(read)]
    try:
        model(input_ids=torch.tensor([list(tokens)]), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return found


def greedy(
    model: nn.Module,
    prompt: Sequence[int],
    num_tokens: int,
    steers: Sequence[Steer] = (),
    part_of: PartOf = _content_only,
) -> tuple[list[int], Tensor]:
    """Greedy tokens and the log-probabilities `[num_tokens, vocabulary]` they were chosen by; a pass a token."""
    tokens = list(prompt)
    rows = []
    for _ in range(num_tokens):
        logits = steered_logits(model, tokens, steers, len(prompt), part_of)[-1]
        rows.append(torch.log_softmax(logits, -1))
        tokens.append(int(logits.argmax()))
    return tokens[len(prompt) :], torch.stack(rows)


def followed(
    model: nn.Module,
    prompt: Sequence[int],
    response: Sequence[int],
    steers: Sequence[Steer] = (),
    part_of: PartOf = _content_only,
) -> Tensor:
    """The log-probabilities `[response, vocabulary]` that each token of a response was chosen by, in one pass.

    No later token changes them: where each is the likeliest, the response is the one that `greedy` finds.
    """
    logits = steered_logits(model, [*prompt, *response], steers, len(prompt), part_of)
    return torch.log_softmax(logits[len(prompt) - 1 : -1], -1)


@torch.no_grad()
def activations(model: nn.Module, tokens: Sequence[int], site: str, layer: int) -> Tensor:
    """The output of `site` at `layer`, `[tokens, hidden]`, of one plain forward pass."""
    return activations_under(model, tokens, site, layer, ())


@torch.no_grad()
def activations_under(
    model: nn.Module, tokens: Sequence[int], site: str, layer: int, steers: Sequence[Steer]
) -> Tensor:
    """The same, of a prompt that is steered, after the steering there."""
    seen: list[Tensor] = []

    def hook(module: nn.Module, args: object, output: object) -> None:
        activation = _activation(output)
        seen.append(activation.reshape(-1, activation.shape[-1]).clone())

    handles = _install(model, steers, len(tokens), ["content"] * len(tokens))
    handles.append(site_module(model, site, layer).register_forward_hook(hook))
    try:
        model(input_ids=torch.tensor([list(tokens)]), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return seen[0]
