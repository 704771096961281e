"""The self-test at load: two prompts in packed chunks must give what the model's own attention gives for each alone.

Every block is compared on its own: its output in the packed pass is replaced by the reference before the next block
reads it, so that errors do not add up. What is left is the rounding of one block, far below what a wrong position, mask
or scale does, in half precision and with a router that is undecided too. What depends on how far into a context a token
is shows only there, so the test is repeated at the end of the context, after a past that is claimed and not computed.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from server.engine.attention.function import ATTENTION_NAME, attention_step
from server.engine.attention.interface import LayerAttention, PagedAttention, Segment, Stretches, page_groups
from server.engine.recurrent.states import RecurrentStates, StateLayout
from server.engine.recurrent.step import RecurrentStep, Span, recurrent_step
from server.engine.refusal import ModelRefused
from vectors.sites import ModelSites
from vectors.vocabulary import Place

_log = logging.getLogger(__name__)

Forward = Callable[[Tensor, Tensor, Tensor], Tensor]
"""A packed pass in an `attention_step`: tokens, positions and wanted, int64 `[n]` each -> logits `[wanted, any]`."""

_LENGTH = 26
_NUM_DECODED = 3
_PAGE_SIZE = 8
_PAGES = ((0, 2, 4), (1, 3, 5, 6))
_SHORTEST = 8
"""Tokens of the shortest context in which there is something to test."""

_TOLERANCES = {torch.float32: 0.002, torch.float16: 0.01, torch.bfloat16: 0.04}
"""Several times the rounding of one block; a wrong position, mask or scale makes 0.06 to 1.5."""

_QUANTISED = 3.0
"""How much more room weights or activations of few bits need."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Where the packed pass differs most from the reference, and by how much, as a share of the reference's size."""

    where: str
    share: float


@dataclass(frozen=True)
class Reference:
    """What the model computes for each prompt by itself: activations by place, and logits `[tokens, vocabulary]`.

    Prompt p is `prompts[p]`, int64 `[tokens]`, at positions from `first` on.
    """

    first: int
    prompts: Sequence[Tensor]
    activations: Sequence[Mapping[Place, Tensor]]
    logits: Sequence[Tensor]


class _ClaimedPast(DynamicCache):
    """A cache that claims `length` tokens, of which no layer sees any."""

    def __init__(self, config: Any, length: int) -> None:
        super().__init__(config=config)
        self._length = length

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """The claimed number."""
        return self._length

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """The new tokens alone, and where they begin."""
        return query_length, self._length

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """The new tokens' keys and values as they are."""
        return key_states, value_states


def check_exactness(
    module: PreTrainedModel,
    forward: Forward,
    sites: ModelSites,
    attention: type[PagedAttention],
    layers: Sequence[LayerAttention | None],
    states: StateLayout,
    context: int,
) -> None:
    """Run the self-test on `module`, whose attention is the engine's. Raises `ModelRefused` when it fails."""
    if context < _SHORTEST:
        return
    dtype = next(module.parameters()).dtype
    tolerance = _TOLERANCES[dtype] * rounding_of(module)
    prompts = make_prompts(module, context)
    with _own_attention(module):
        near = compute_reference(module, sites, prompts)
    if not all(bool(torch.isfinite(logits.amax(-1)).all()) for logits in near.logits):
        raise ModelRefused(
            f"{type(module).__name__}: the model's own output is not finite in {str(dtype).removeprefix('torch.')}; "
            "try another --dtype, or check the weights"
        )
    difference = largest_difference(forward, sites, attention, layers, states, near, dtype, tolerance)
    if difference is not None:
        raise ModelRefused(
            f"{type(module).__name__} computes something else in packed batches than alone: {difference.where} differs "
            f"by {difference.share:.0%}; its code does not take a token's position from position_ids, or has "
            "a mask or a scale of its own; serve it with transformers"
        )

    chunks = [layer.reach.chunk for layer in layers if layer is not None and layer.reach.chunk is not None]

    def difference_at(first: int) -> Difference | None:
        first -= first % math.lcm(*chunks)  # where no claimed token is seen
        if first <= 0:
            return None
        with _own_attention(module):
            far = compute_reference(module, sites, prompts, first=first)
        return largest_difference(forward, sites, attention, layers, states, far, dtype, tolerance)

    _check_far(type(module).__name__, context - len(prompts[-1]), difference_at)


def rounding_of(module: PreTrainedModel) -> float:
    """How much more room than the rounding of its dtype the arithmetic of `module` needs."""
    return 1.0 if getattr(module, "hf_quantizer", None) is None else _QUANTISED


def _check_far(architecture: str, last: int, difference_at: Callable[[int], Difference | None]) -> None:
    """Compare at position `last`; on failure, find the power of two below which the model is exact."""
    if last <= 0:
        return
    difference = difference_at(last)
    if difference is None:
        return
    exact = 1 << last.bit_length() - 1
    while exact > _LENGTH and difference_at(exact - _LENGTH) is not None:
        exact //= 2
    raise ModelRefused(
        f"{architecture} computes something else in packed batches than alone at positions far into its context: "
        f"{difference.where} differs by {difference.share:.0%} at {last}; serve it with --max-model-len {exact - 1}"
    )


@contextmanager
def _own_attention(module: PreTrainedModel) -> Iterator[None]:
    """The model with transformers' eager attention."""
    module.set_attn_implementation("eager")
    try:
        yield
    finally:
        module.set_attn_implementation(ATTENTION_NAME)


def make_prompts(module: PreTrainedModel, context: int) -> tuple[Tensor, ...]:
    """Two prompts of different lengths, at most `context` tokens: int64 `[tokens]` on the model's device.

    They are text: no token that the configuration names, such as an image's place or padding.
    """
    weight = module.get_input_embeddings().weight
    assert isinstance(weight, Tensor)
    num_ids = min(weight.shape[0], int(module.config.get_text_config(decoder=True).vocab_size))
    special = _named_tokens(module.config.to_dict())
    ordinary = torch.tensor([token for token in range(num_ids) if token not in special], dtype=torch.int64)
    generator = torch.Generator().manual_seed(0)
    device = next(module.parameters()).device
    longer = max(2, min(_LENGTH, context))
    return tuple(
        ordinary[torch.randint(len(ordinary), (length,), generator=generator)].to(device)
        for length in (longer * 3 // 4, longer)
    )


def _named_tokens(config: Mapping[str, Any]) -> set[int]:
    named: set[int] = set()
    for name, value in config.items():
        if isinstance(value, Mapping):
            named |= _named_tokens(value)
        elif isinstance(name, str) and "token" in name and name.endswith(("_id", "_ids", "_index")):
            named |= {token for token in (value if isinstance(value, list) else [value]) if isinstance(token, int)}
    return named


def compute_reference(
    module: PreTrainedModel, sites: ModelSites, prompts: Sequence[Tensor], *, first: int = 0
) -> Reference:
    """What `module`, with an attention of transformers' own, computes for `prompts` from position `first` on."""
    activations, logits = [], []
    for prompt in prompts:
        seen: dict[Place, Tensor] = {}
        with torch.inference_mode(), _Hooks(sites, seen.__setitem__):
            logits.append(_run_alone(module, prompt, first).float())
        activations.append(seen)
    return Reference(first, prompts, activations, logits)


def _run_alone(module: PreTrainedModel, prompt: Tensor, first: int) -> Tensor:
    """Logits `[tokens, vocabulary]` of `prompt` at positions from `first` on, which the model counts itself."""
    tokens = prompt.unsqueeze(0)
    if not first:
        logits: Tensor = module(input_ids=tokens, use_cache=False).logits[0]
        return logits
    try:
        logits = module(input_ids=tokens, use_cache=True, past_key_values=_ClaimedPast(module.config, first)).logits[0]
    except Exception as error:  # a model with a cache of its own kind: tell it the positions instead
        _log.debug("%s does not take a claimed past: %s", type(module).__name__, error)
        positions = torch.arange(first, first + len(prompt), device=prompt.device).unsqueeze(0)
        logits = module(input_ids=tokens, position_ids=positions, use_cache=False).logits[0]
    return logits


def largest_difference(
    forward: Forward,
    sites: ModelSites,
    attention: type[PagedAttention],
    layers: Sequence[LayerAttention | None],
    layout: StateLayout,
    reference: Reference,
    dtype: torch.dtype,
    tolerance: float,
) -> Difference | None:
    """Compare a packed run of the reference's prompts with it; None when no difference is beyond `tolerance`.

    `dtype`: of the KV.
    """
    device = reference.prompts[0].device
    num_groups = len(page_groups(layers))
    num_pages = [sum(map(len, _PAGES))] * num_groups
    kv = attention(layers, num_pages=num_pages, page_size=_PAGE_SIZE, dtype=dtype, device=device)
    states = RecurrentStates(layout, len(reference.prompts), device)
    comparison = _Comparison(reference)
    try:
        spans = [_spans(len(prompt), in_chunks=reference.first == 0) for prompt in reference.prompts]
        for step in zip(*spans, strict=True):
            _run_step(forward, sites, kv, num_groups, states, comparison, step)
    finally:
        kv.close()
        states.close()
    return comparison.largest(tolerance)


def _run_step(
    forward: Forward,
    sites: ModelSites,
    kv: PagedAttention,
    num_groups: int,
    states: RecurrentStates,
    comparison: _Comparison,
    step: Sequence[tuple[int, int]],
) -> None:
    """Run the tokens `[first, last)` of each prompt as one pack."""
    reference = comparison.reference
    segments, slots, start = [], [], 0
    for (first, last), pages in zip(step, _PAGES, strict=True):
        own = [page * _PAGE_SIZE + offset for page in pages for offset in range(_PAGE_SIZE)][:last]
        segments.append(Segment(start, start + last - first, first, (_stretches(own),) * num_groups))
        slots += own[first:last]
        start += last - first
    device = reference.prompts[0].device
    tokens = torch.cat([prompt[slice(*span)] for prompt, span in zip(reference.prompts, step, strict=True)])
    positions = torch.cat([torch.arange(*span, device=device) for span in step]) + reference.first
    comparison.begin(step)
    planned = kv.plan(segments, [torch.tensor(slots, device=device)] * num_groups)
    recurrent = RecurrentStep(states, [_span(slot, segment) for slot, segment in enumerate(segments)], device)
    with (
        torch.inference_mode(),
        attention_step(planned),
        recurrent_step(recurrent),
        _Hooks(sites, comparison.compare),
    ):
        logits = forward(tokens, positions, torch.arange(len(tokens), device=device))
    comparison.compare_logits(logits.float())


def _span(slot: int, segment: Segment) -> Span:
    return Span(segment.start, segment.end, slot, segment.num_past == 0)


def _spans(length: int, *, in_chunks: bool) -> list[tuple[int, int]]:
    """A prompt's tokens as spans `[first, last)`, one for each step: two chunks and single tokens, or all at once."""
    if not in_chunks:
        return [(0, length)]
    decoded = [(token, token + 1) for token in range(length - _NUM_DECODED, length)]
    read = length - _NUM_DECODED
    return [(0, read // 2), (read // 2, read), *decoded]


def _stretches(slots: Sequence[int]) -> Stretches:
    """Ascending slots as runs `[first, last)`."""
    stretches: list[tuple[int, int]] = []
    for slot in slots:
        if stretches and stretches[-1][1] == slot:
            stretches[-1] = (stretches[-1][0], slot + 1)
        else:
            stretches.append((slot, slot + 1))
    return Stretches(tuple(stretches))


class _Hooks:
    """Calls `look(place, activation)` after each block and each attention; a tensor that it returns replaces the
    activation."""

    def __init__(self, sites: ModelSites, look: Callable[[Place, Tensor], Tensor | None]) -> None:
        self._sites = sites
        self._look = look
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> None:
        for site in ("attention", "residual"):
            for layer, module in enumerate(self._sites.modules.get(site, ())):
                self._handles.append(module.register_forward_hook(self._hook((site, layer))))

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _hook(self, place: Place) -> Callable[[nn.Module, Any, Any], Any]:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            activation = output[0] if isinstance(output, tuple) else output
            if not isinstance(activation, Tensor):
                return None
            replaced = self._look(place, activation.clone())
            if replaced is None:
                return None
            return (replaced, *output[1:]) if isinstance(output, tuple) else replaced

        return hook


class _Comparison:
    """Collects the differences of a packed run from a reference, by place and by group of tokens.

    Tokens of one chunk are a group, and so are all that were decoded one by one: the median of a group ignores a few
    tokens that a router sent elsewhere, and no group is so small that a few are the half of it.
    """

    def __init__(self, reference: Reference) -> None:
        self.reference = reference
        self._step: Sequence[tuple[int, int]] = ()
        self._shares: dict[tuple[str, str], list[float]] = {}

    def begin(self, step: Sequence[tuple[int, int]]) -> None:
        """Expect the activations of a step on the tokens `[first, last)` of each prompt."""
        self._step = step

    def compare(self, place: Place, activation: Tensor) -> Tensor | None:
        """Compare an activation; returns the reference in its place if it is a block's output."""
        site, layer = place
        known = self._references(place)
        if not known:
            return None
        dim = _token_dim(known)
        if dim is None:
            return None
        expected = self._packed(known, dim)
        if expected.shape != activation.shape:
            return None
        scale = expected
        if site == "residual" and layer > 0:
            before = self._references((site, layer - 1))
            if [each.shape for each in before] == [each.shape for each in known]:
                scale = expected.float() - self._packed(before, dim).float()
        self._note(f"{'attention' if site == 'attention' else 'block'} {layer}", activation, expected, scale, dim)
        return expected if site == "residual" else None

    def _references(self, place: Place) -> list[Tensor]:
        """The activation of each prompt at `place`; empty when one has none."""
        known = [seen[place] for seen in self.reference.activations if place in seen]
        return known if len(known) == len(self.reference.activations) else []

    def compare_logits(self, logits: Tensor) -> None:
        """Compare logits `[tokens, vocabulary]`."""
        expected = self._packed(self.reference.logits, 0)
        self._note("the logits", logits, expected, expected - expected.mean(-1, keepdim=True), 0)

    def largest(self, tolerance: float) -> Difference | None:
        """The first difference beyond `tolerance`, in the order of computation."""
        for (where, _), shares in self._shares.items():
            median = torch.tensor(shares).median().item()
            if not median <= tolerance:
                return Difference(where, median)
        return None

    def _packed(self, references: Sequence[Tensor], dim: int) -> Tensor:
        parts = [
            value.narrow(dim, first, last - first) for value, (first, last) in zip(references, self._step, strict=True)
        ]
        return torch.cat(parts, dim)

    def _note(self, where: str, actual: Tensor, expected: Tensor, scale: Tensor, dim: int) -> None:
        def by_token(value: Tensor) -> Tensor:
            return value.float().movedim(dim, 0).flatten(1).abs().sum(1)

        sizes = by_token(scale)
        shares = by_token(actual.float() - expected.float()) / sizes.clamp_min(torch.finfo(torch.float32).tiny)
        start = 0
        for prompt, (first, last) in enumerate(self._step):
            group = f"prompt {prompt} from {first}" if last - first > 1 else "decoded"
            self._shares.setdefault((where, group), []).extend(shares[start : start + last - first].tolist())
            start += last - first


def _token_dim(activations: Sequence[Tensor]) -> int | None:
    """The dimension that counts tokens: the only one in which prompts of different lengths differ."""
    first, second = activations
    if first.ndim != second.ndim:
        return None
    dims = [dim for dim, sizes in enumerate(zip(first.shape, second.shape, strict=True)) if sizes[0] != sizes[1]]
    return dims[0] if len(dims) == 1 else None
