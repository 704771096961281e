"""Finds out whether `FusedBlocks` computes what a model's own blocks do, and has it compute them if so.

No family is known by name. A prompt is run in two chunks through the model's own blocks. Then each block is computed
by the kernels from the input that it had there, and what comes out at each of its places must be the same up to the
rounding of float32. At last the model with fused blocks must give the same logits.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from server.engine.attention.compiled import CompiledAttention
from server.engine.attention.function import attention_step
from server.engine.attention.interface import AttentionStep, LayerAttention, Segment, Stretches, page_groups
from server.engine.fused_blocks import ORDER, FusedBlocks, NotFusable, ShortForward, number_of
from server.kernels.library import Kernels
from vectors.sites import ModelSites, activation_of
from vectors.vocabulary import Place

_log = logging.getLogger(__name__)

Forward = Callable[[Tensor, Tensor, Tensor], Tensor]
"""A packed pass in an `attention_step`: tokens, positions and wanted, int64 `[n]` each -> logits `[wanted, any]`."""

_TOLERANCE = 1e-4
"""The largest difference at one place of one block, as a share of the largest number there; rounding makes 1e-6."""

_LOGITS_TOLERANCE = 1e-2
"""The same for the logits, after the rounding of all blocks; blocks in a wrong order or twice make 0.5 and more."""


@dataclass(frozen=True)
class FusionProbe:
    """Runs `prompt`, int64 `[tokens]`, at least three, with `forward`; `layers`: what its attention is asked for."""

    forward: Forward
    sites: ModelSites
    layers: Sequence[LayerAttention | None]
    prompt: Tensor

    def install(self, kernels: Kernels) -> FusedBlocks | None:
        """Put fused blocks into the model; None, with the reason in the log, if they would compute something else."""
        blocks = self.sites.modules["residual"]
        parent, name = self._list_of(blocks)
        own = getattr(parent, name)
        try:
            self._require_plain_attention()
            fused = FusedBlocks(blocks, kernels)
            with torch.inference_mode():
                logits = self._compare_blocks(fused)
                setattr(parent, name, nn.ModuleList([fused]))
                self._compare(self._run(contextlib.nullcontext), logits, "the logits", _LOGITS_TOLERANCE)
        except Exception as error:  # the model's own code may raise anything
            setattr(parent, name, own)
            _log.log(
                logging.INFO if isinstance(error, NotFusable) else logging.DEBUG,
                "the blocks are computed one layer after the other: %s",
                error,
            )
            return None
        _log.info("all %d blocks are computed in one call of the compiled kernels", len(blocks))
        return fused

    def short_forward(self, fused: FusedBlocks, head: nn.Module) -> ShortForward | None:
        """A pass that gives the logits of `forward` to the bit, once `fused` is installed; None if there is none."""
        try:
            short = ShortForward(self.sites.decoder, fused, head)
            with torch.inference_mode():
                whole = self._run(contextlib.nullcontext)
                found = replace(self, forward=short)._run(contextlib.nullcontext)
            return short if torch.equal(found, whole) else None
        except Exception as error:  # the model's own code may raise anything
            _log.debug("the model's code around its blocks is run: %s", error)
            return None

    def _list_of(self, blocks: Sequence[nn.Module]) -> tuple[nn.Module, str]:
        """The module that has the list of the `blocks`, and its name there."""
        lists = [
            name
            for name, child in self.sites.decoder.named_children()
            if isinstance(child, nn.ModuleList) and tuple(child) == tuple(blocks)
        ]
        assert len(lists) == 1, lists
        return self.sites.decoder, lists[0]

    def _require_plain_attention(self) -> None:
        for number, layer in enumerate(self.layers):
            if layer is None or layer.is_latent or layer.has_sinks or layer.softcap or layer.shares is not None:
                raise NotFusable(f"the attention of block {number} is of another kind: {layer}")

    def _compare_blocks(self, fused: FusedBlocks) -> Tensor:
        """Logits `[tokens, vocabulary]` of the model's own blocks. Raises `NotFusable` where a block differs."""
        chunks: list[_Chunk] = []

        def watch() -> _Chunk:
            chunks.append(_Chunk(self.sites))
            return chunks[-1]

        logits = self._run(watch)
        with self._kv() as kv:
            for chunk, (_, step) in zip(chunks, self._steps(kv), strict=True):
                for number, (stream, cosines, sines) in enumerate(chunk.inputs):
                    given = fused.start(stream.clone(), cosines, sines, step)
                    for site in ORDER:
                        place = number_of((site, number))
                        fused.compute(given, place, place + 1)
                        where = f"{site} of block {number}"
                        self._compare(given.at(site), chunk.outputs[site, number], where, _TOLERANCE)
        return logits

    def _compare(self, found: Tensor, wanted: Tensor, where: str, tolerance: float) -> None:
        if found.shape != wanted.shape:
            raise NotFusable(f"{where}: expected {tuple(wanted.shape)} numbers, got {tuple(found.shape)}")
        share = float((found - wanted).abs().max() / wanted.abs().max())
        if not share <= tolerance:
            raise NotFusable(f"{where} would differ by {share:.1g} of the largest number there")

    def _run(self, watch: Callable[[], contextlib.AbstractContextManager[object]]) -> Tensor:
        """Logits `[tokens, vocabulary]`, computed in chunks, each within what `watch` gives."""
        found = []
        with self._kv() as kv:
            for positions, step in self._steps(kv):
                with watch(), attention_step(step):
                    wanted = torch.arange(len(positions))
                    found.append(self.forward(self.prompt[positions], positions, wanted).float())
        return torch.cat(found)

    def _steps(self, kv: CompiledAttention) -> Iterator[tuple[Tensor, AttentionStep]]:
        """The positions of each chunk, whose KV is kept in the slots of these numbers, and its attention."""
        middle = len(self.prompt) * 2 // 3
        groups = len(page_groups(self.layers))
        for first, last in ((0, middle), (middle, len(self.prompt))):
            positions = torch.arange(first, last)
            segment = Segment(0, last - first, first, (Stretches(((0, last),)),) * groups)
            yield positions, kv.plan([segment], [positions] * groups)

    @contextlib.contextmanager
    def _kv(self) -> Iterator[CompiledAttention]:
        kv = CompiledAttention(
            self.layers,
            num_pages=[1] * len(page_groups(self.layers)),
            page_size=len(self.prompt),
            dtype=torch.float32,
            device=self.prompt.device,
        )
        with contextlib.closing(kv):
            yield kv


class _Chunk(contextlib.AbstractContextManager["_Chunk"]):
    """What goes into each block, and what comes out at each place, while it is entered: `[tokens, …]` each."""

    def __init__(self, sites: ModelSites) -> None:
        self.inputs: list[tuple[Tensor, Tensor, Tensor]] = []
        self.outputs: dict[Place, Tensor] = {}
        self._handles: list[Any] = []
        self._sites = sites

    def __enter__(self) -> _Chunk:
        for block in self._sites.modules["residual"]:
            self._handles.append(block.register_forward_pre_hook(self._note_input, with_kwargs=True))
        for site, modules in self._sites.modules.items():
            for layer, module in enumerate(modules):
                self._handles.append(module.register_forward_hook(self._noting((site, layer))))
        return self

    def __exit__(self, *exception: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _note_input(self, block: nn.Module, args: Any, kwargs: Any) -> None:
        cosines, sines = kwargs["position_embeddings"]
        self.inputs.append((args[0][0].clone(), cosines[0], sines[0]))

    def _noting(self, place: Place) -> Callable[[nn.Module, Any, Any], None]:
        def note(module: nn.Module, args: Any, output: Any) -> None:
            self.outputs[place] = activation_of(output)[0].clone()

        return note
