"""Runs all decoder blocks of a Llama-like model in one call of the compiled kernels, in place of the model's own code.

`blocks.c` computes the places of the blocks (see `vectors/sites.py`) one after the other, and adds the rows of the
steering bank, its slots and its readings. Where a place is captured, gates are latched, or tokens enter late, the call
ends, Python does that, and the next call goes on. So whatever is steered, all else is computed by the same code, to the
same bits.

Nothing here decides that a model is like this: `fusion_probe.py` tries it.
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Sequence, Set
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from server.engine.attention.compiled import CompiledStep
from server.engine.attention.function import current_attention
from server.engine.attention.interface import AttentionStep
from server.engine.current import Current
from server.engine.late_entry import current_stages
from server.engine.packing import PackedLinear, PackedNorm
from server.kernels.library import Kernels
from server.kernels.structures import BlocksPass, BlockWeights, Matrix, PlaceSteering
from server.steering.bank import SteeringBank
from server.steering.hooks import StepActivations, change_and_capture, place_steering
from vectors.vocabulary import Place, Site

ORDER: tuple[Site, ...] = ("attention", "post_attention_norm", "mlp", "residual")
"""The places of a block as `blocks.c` computes them."""


class NotFusable(ValueError):
    """A block is not made of the layers that `blocks.c` computes."""


@dataclass(frozen=True, slots=True)
class _Steering:
    bank: SteeringBank
    step: StepActivations


_steering: Current[_Steering] = Current("tiller_fused_steering")


class SteeredBlocks:
    """Steers and captures in `FusedBlocks`, as `ActivationHooks` does in a model's own modules."""

    def __init__(self, bank: SteeringBank) -> None:
        self._bank = bank

    def step(self, activations: StepActivations) -> AbstractContextManager[object]:
        """Steer and capture every forward pass within; does not nest."""
        return _steering.set_to(_Steering(self._bank, activations))

    def close(self) -> None:
        """Nothing was put on the model."""


class FusedBlocks(nn.Module):
    """All blocks of a model, in the place of the first of them; the others are not called."""

    def __init__(self, blocks: Sequence[nn.Module], kernels: Kernels) -> None:
        """Raises `NotFusable`."""
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self._kernels = kernels
        self._weights = (BlockWeights * len(blocks))(*(_weights_of(block, at) for at, block in enumerate(blocks)))

    def forward(self, hidden_states: Tensor, *, position_embeddings: tuple[Tensor, Tensor], **others: Any) -> Tensor:
        """The first block's input `[1, tokens, hidden]` -> the last block's output; `position_embeddings` are the
        cosines and sines `[1, tokens, rotary]`. Runs inside an `attention_step`."""
        stream, (cosines, sines) = hidden_states[0], (part[0] for part in position_embeddings)
        attention, stages, steering = current_attention(), current_stages(), _steering.get()
        num_places = number_of((ORDER[0], len(self.blocks)))
        if stages is None:
            given = self.start(stream.clone(), cosines, sines, attention)
            self._run(given, 0, num_places, steering)
            return given.stream.unsqueeze(0)
        for first, end in itertools.pairwise((*stages.begins, num_places)):
            stage = stages.of_point(first)
            tokens, sources = torch.from_numpy(stage.tokens), torch.from_numpy(stage.sources)
            angles = cosines.index_select(0, tokens), sines.index_select(0, tokens)
            if first == 0:
                given = self.start(stream.index_select(0, sources), *angles, attention.of_point(0))
            else:
                given = given.of_tokens(sources, *angles, attention.of_point(first))
            own = None if steering is None else replace(steering, step=steering.step.by_point[first])
            if own is not None and first:
                site, layer = place_of(first - 1)
                change_and_capture((site, layer), own.bank, own.step, given.at(site))
            self._run(given, first, end, own, goes_on=end in stages.begins)
        return given.stream.unsqueeze(0)

    def start(self, stream: Tensor, cosines: Tensor, sines: Tensor, attention: AttentionStep) -> StartedPass:
        """A pass of `stream` `[tokens, hidden]`, which it changes; `cosines` and `sines` `[tokens, rotary]`."""
        return StartedPass(self._weights, stream, cosines.contiguous(), sines.contiguous(), attention)

    def compute(self, given: StartedPass, first: int, last: int) -> None:
        """Compute the places `[first, last)`, by `number_of`. Raises `MemoryError`."""
        self._kernels.blocks(self._weights, given.structure, first, last)

    def _run(
        self, given: StartedPass, at: int, last: int, steering: _Steering | None, *, goes_on: bool = False
    ) -> None:
        """Compute the places `[at, last)`; with `goes_on`, what is at the last one is changed by who calls."""
        if steering is not None:
            bank, step = steering.bank, steering.step
            stops = set(step.captures)
            if step.slot_tokens is not None and step.latches:
                stops.update(place for place in bank.slot_places() if bank.has_latch(place))
            numbers = sorted((number_of(place), place) for place in stops)
            if step.row_of_token is not None:
                left_out = {number for number, _ in numbers} | ({last - 1} if goes_on else set())
                given.add(step.row_of_token, bank, left_out)
                if step.slot_tokens is not None:
                    given.steer(step, bank, left_out)
            for number, place in numbers:
                if at <= number < last - goes_on:
                    self.compute(given, at, number + 1)
                    change_and_capture(place, bank, step, given.at(place[0]))
                    at = number + 1
        self.compute(given, at, last)


class ShortForward:
    """A pass through a model with `FusedBlocks` that leaves out the model's code around its modules.

    Whether that code does anything more, such as to scale the logits, is for the caller to find out.
    """

    def __init__(self, decoder: nn.Module, blocks: FusedBlocks, head: nn.Module) -> None:
        """Raises `NotFusable` when `decoder` has not the modules of a Llama's."""
        try:
            self._embed, self._rotary, self._norm = map(decoder.get_submodule, ("embed_tokens", "rotary_emb", "norm"))
        except AttributeError as error:
            raise NotFusable(str(error)) from None
        self._blocks, self._head = blocks, head

    def __call__(self, tokens: Tensor, positions: Tensor, wanted: Tensor) -> Tensor:
        """int64 `[tokens]`, `[tokens]`, `[wanted]` -> logits `[wanted, vocabulary]`."""
        stream = self._embed(tokens).unsqueeze(0)
        stream = self._blocks(stream, position_embeddings=self._rotary(stream, positions.unsqueeze(0)))
        logits: Tensor = self._head(self._norm(stream[0].index_select(0, wanted)))
        return logits


class StartedPass:
    """The numbers of a pass on its way through the blocks; `structure` is what the kernels are given."""

    def __init__(
        self,
        weights: ctypes.Array[BlockWeights],
        stream: Tensor,
        cosines: Tensor,
        sines: Tensor,
        attention: AttentionStep,
        normed: Tensor | None = None,
        output: Tensor | None = None,
    ) -> None:
        assert isinstance(attention, CompiledStep)
        of, tokens, rotary = weights[0], len(stream), cosines.shape[-1]
        assert stream.is_contiguous()
        if rotary % 2 or rotary > of.head_dim or cosines.shape != sines.shape or len(cosines) != tokens:
            raise NotFusable(f"expected at most {of.head_dim} angles for each token, got {tuple(cosines.shape)}")
        queries, keys = of.heads * of.head_dim, of.kv_heads * of.head_dim
        normed = torch.empty_like(stream) if normed is None else normed
        output = torch.empty_like(stream) if output is None else output
        mixed, attended, inner = (torch.empty(tokens, width) for width in (queries + 2 * keys, queries, 2 * of.inner))
        self.stream, self._normed, self._output, self._weights = stream, normed, output, weights
        caches = (ctypes.c_void_p * len(weights))()
        sights = (ctypes.c_void_p * len(weights))()
        for layer in range(len(weights)):
            caches[layer] = ctypes.addressof(attention.layout(layer))
            sights[layer] = ctypes.addressof(attention.views(layer).sight)
        self._kept: list[Any] = [mixed, attended, inner, cosines, sines, caches, sights, attention]
        self.structure = BlocksPass(
            *(part.data_ptr() for part in (stream, normed, mixed, attended, inner, output, cosines, sines)),
            ctypes.addressof(caches), ctypes.addressof(sights), None, None, None, None, tokens, rotary,
        )  # fmt: skip
        self._num_places = len(weights) * len(ORDER)

    def of_tokens(self, tokens: Tensor, cosines: Tensor, sines: Tensor, attention: AttentionStep) -> StartedPass:
        """The pass of some of its `tokens`, int64, each as often as it is named, as far as it has come."""
        stream, normed, output = (part.index_select(0, tokens) for part in (self.stream, self._normed, self._output))
        return StartedPass(self._weights, stream, cosines, sines, attention, normed, output)

    def add(self, row_of_token: Tensor, bank: SteeringBank, left_out: Set[int]) -> None:
        """From now on add the `bank`'s row of each token at every place but the numbers `left_out`."""
        adds = (ctypes.c_void_p * self._num_places)()
        for place, address in bank.addresses_of_adds():
            if (number := number_of(place)) not in left_out:
                adds[number] = address
        self._kept += [adds, row_of_token]
        self.structure.rows_of_tokens, self.structure.adds = row_of_token.data_ptr(), ctypes.addressof(adds)

    def steer(self, step: StepActivations, bank: SteeringBank, left_out: Set[int]) -> None:
        """From now on do also what the `bank`'s rows do beyond additions, and read, but for the numbers `left_out`."""
        places = (PlaceSteering * self._num_places)()
        adds = {number_of(place): address for place, address in bank.addresses_of_adds()}
        own = ctypes.cast(self.structure.adds, ctypes.POINTER(ctypes.c_void_p))
        for place in bank.slot_places():
            if (number := number_of(place)) not in left_out:
                places[number] = place_steering(adds.get(number), bank.slots(place), bank.readings(place))
                own[number] = None  # it is added before the slots
        pack = step.pack_of(self.stream.shape[-1])
        self._kept += [places, pack]
        self.structure.steered, self.structure.places = ctypes.addressof(pack), ctypes.addressof(places)

    def at(self, site: Site) -> Tensor:
        """What was computed last at a place of `site`: `[tokens, hidden]`; a change of it is gone on from."""
        match site:
            case "residual":
                return self.stream
            case "post_attention_norm":
                return self._normed
            case _:
                return self._output


def number_of(place: Place) -> int:
    """The number of `place`, counted through all blocks in the order in which they are computed."""
    site, layer = place
    return layer * len(ORDER) + ORDER.index(site)


def place_of(number: int) -> Place:
    """The inverse of `number_of`."""
    layer, site = divmod(number, len(ORDER))
    return ORDER[site], layer


def _weights_of(block: nn.Module, number: int) -> BlockWeights:
    """Raises `NotFusable`."""
    try:
        attention, mlp = block.get_submodule("self_attn"), block.get_submodule("mlp")
        scale, head_dim, layer = (getattr(attention, name) for name in ("scaling", "head_dim", "layer_idx"))
    except AttributeError as error:
        raise NotFusable(str(error)) from None
    mixers = _linears(attention, "qkv_proj") or _linears(attention, "q_proj", "k_proj", "v_proj")
    gates = _linears(mlp, "gate_up_proj") or _linears(mlp, "gate_proj", "up_proj")
    outputs, downs = _linears(attention, "o_proj"), _linears(mlp, "down_proj")
    norms = [_norm(block, name) for name in ("input_layernorm", "post_attention_layernorm")]
    head_norms = [_norm(attention, name) for name in ("q_norm", "k_norm")]
    if not (mixers and outputs and gates and downs) or norms[0] is None or norms[1] is None or layer != number:
        raise NotFusable(f"{type(block).__name__} has not the linear layers and norms of a Llama's block")
    heads = outputs[0].in_features // head_dim
    kv_heads = (sum(linear.out_features for linear in mixers) // head_dim - heads) // 2
    hidden, inner = outputs[0].out_features, downs[0].in_features
    for what, linears, num_inputs, num_outputs in (
        ("queries, keys and values", mixers, hidden, (heads + 2 * kv_heads) * head_dim),
        ("attention's output", outputs, heads * head_dim, hidden),
        ("gates", gates, hidden, 2 * inner),
        ("feed-forward's output", downs, inner, hidden),
    ):
        is_wide = sum(linear.out_features for linear in linears) == num_outputs
        if not is_wide or any(linear.in_features != num_inputs for linear in linears):
            raise NotFusable(f"{type(block).__name__}: expected {num_outputs} x {num_inputs} weights for the {what}")
    weights = BlockWeights(
        num_queries_keys_values=len(mixers), num_gate_up=len(gates), hidden=hidden, heads=heads, kv_heads=kv_heads,
        head_dim=head_dim, inner=inner, output=_matrix(outputs[0]), down=_matrix(downs[0]), scale=scale,
    )  # fmt: skip
    weights.queries_keys_values[: len(mixers)] = [_matrix(linear) for linear in mixers]
    weights.gate_up[: len(gates)] = [_matrix(linear) for linear in gates]
    names, widths = ("input", "post_attention", "query", "key"), (hidden, hidden, head_dim, head_dim)
    for name, norm, width in zip(names, (*norms, *head_norms), widths, strict=True):
        if norm is not None:
            if len(norm.weight) != width:
                raise NotFusable(f"{type(block).__name__}: expected {width} numbers in the {name} norm")
            setattr(weights, f"{name}_norm", norm.weight.data_ptr())
            setattr(weights, f"{name}_epsilon", norm.epsilon)
    return weights


def _linears(module: nn.Module, *names: str) -> list[PackedLinear]:
    """The layers of these names; empty if one is missing or another kind of layer."""
    found = [child for name in names if isinstance(child := getattr(module, name, None), PackedLinear)]
    return found if len(found) == len(names) else []


def _norm(module: nn.Module, name: str) -> PackedNorm | None:
    """Raises `NotFusable` for another kind of norm."""
    found = getattr(module, name, None)
    if found is not None and not isinstance(found, PackedNorm):
        raise NotFusable(f"{name} is a {type(found).__name__}")
    return found


def _matrix(linear: PackedLinear) -> Matrix:
    return Matrix.of(linear.packed, linear.bias, linear.out_features)
