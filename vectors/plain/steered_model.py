"""SteeredModel: a plain transformers model while a context steers or reads it, with the hooks that do so.

A hook on the decoder tells which tokens of a forward pass belong to the prompt. `generate` is wrapped while a context
is open, because only its arguments say how long the prompt is when a pass has only a chunk of it, or repeats the answer
without a KV cache.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from contextvars import ContextVar
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from vectors.applied import change_at
from vectors.operations import PlaceChange
from vectors.plain.gates import Entry, apply_gated
from vectors.plain.passes import PassPlace
from vectors.plain.scores import Scores
from vectors.positions import Positions
from vectors.sites import ModelSites, activation_of
from vectors.vocabulary import Place


def claim(model: nn.Module, sites: ModelSites) -> SteeredModel:
    """The model's state, created if no context is open. Raises `RuntimeError` if another claims it."""
    with _LOCK:
        steered = _STEERED.get(sites.decoder)
        if steered is None:
            _check_can_hook(model, sites.decoder)
            steered = _STEERED[sites.decoder] = SteeredModel(model, sites)
            _CLAIMED.set((*_CLAIMED.get(), steered.claim))
        elif steered.model is not model:
            raise RuntimeError("the model is part of one that is already steered: pass the same object to every steer")
        steered.check_claimed()
        return steered


def give_back(steered: SteeredModel, context: object) -> None:
    """End `context`, and with the last one what is on the model."""
    with _LOCK:
        if steered.remove(context):
            del _STEERED[steered.sites.decoder]
            _CLAIMED.set(tuple(claim for claim in _CLAIMED.get() if claim is not steered.claim))


def _check_can_hook(model: nn.Module, decoder: nn.Module) -> None:
    if hasattr(model, "_orig_mod") or any(module._compiled_call_impl is not None for module in model.modules()):
        raise RuntimeError("a compiled model would ignore the steering: pass the model that is not compiled")
    if "past_key_values" not in inspect.signature(decoder.forward).parameters:
        raise RuntimeError(
            f"{type(decoder).__name__} does not take past_key_values: only decoders with a KV cache can be steered"
        )


class SteeredModel:
    """A model while a context is open: what steers it, its hooks, and where its sequences stand."""

    def __init__(self, model: nn.Module, sites: ModelSites) -> None:
        self.model = model
        self.sites = sites
        self.claim = object()  # not the model: what was started within the context may keep it for long
        self._contexts: dict[object, Sequence[Entry]] = {}
        self._readers: dict[object, Scores] = {}
        self._changes: dict[tuple[Place, _Covering, torch.device], PlaceChange] = {}
        self._hooks: dict[Place, RemovableHandle] = {}
        self._signature = inspect.signature(sites.decoder.forward)
        # of the pass under way: its thread, and the numbers of its tokens [batch · width] (None: all), by what covers
        self._running_on: int | None = None
        self._tokens: Mapping[_Covering, Tensor | None] | None = None
        self._place: PassPlace | None = None
        self._has_run = False
        self._num_prompt: int | None = None
        with ExitStack() as undo:
            decoder = sites.decoder
            undo.callback(decoder.register_forward_pre_hook(self._begin_pass, with_kwargs=True).remove)
            undo.callback(decoder.register_forward_hook(self._end_pass, always_call=True).remove)
            if callable(getattr(model, "generate", None)):
                undo.callback(self._wrap_generate())
            self._undo = undo.pop_all()

    def check_claimed(self) -> None:
        """Raise `RuntimeError` unless the caller is within the context that claimed the model."""
        if self.claim not in _CLAIMED.get():
            raise RuntimeError(
                "the model is being steered by another thread or task: run it where the context was entered, or enter "
                "the context where it runs"
            )

    def add(self, context: object, entries: Sequence[Entry]) -> None:
        """Also steer by `entries`, until `context` is removed."""
        self._contexts[context] = entries
        self._hook_places()

    def read(self, context: object, scores: Scores) -> None:
        """Also read into `scores`, until `context` is removed."""
        self._readers[context] = scores
        self._hook_places()

    def remove(self, context: object) -> bool:
        """End `context`. True if it was the last one; nothing is then left on the model."""
        self._contexts.pop(context, None)
        self._readers.pop(context, None)
        self._hook_places()
        is_last = not self._contexts and not self._readers
        if is_last:
            self._undo.close()
        return is_last

    def _hook_places(self) -> None:
        """Keep hooks at exactly the places that are steered or read."""
        self._changes.clear()
        places = {place for entry in self._entries() for place in entry.applied.places}
        places |= {entry.gate.place for entry in self._entries() if entry.gate is not None}
        places |= {place for scores in self._readers.values() for place in scores.readings}
        for place in self._hooks.keys() - places:
            self._hooks.pop(place).remove()
        for place in places - self._hooks.keys():
            site, layer = place
            self._hooks[place] = self.sites.modules[site][layer].register_forward_hook(self._hook_at(place))

    def _entries(self) -> list[Entry]:
        """Those that may change something."""
        return [entry for entries in self._contexts.values() for entry in entries if entry.applied.is_active]

    def _wrap_generate(self) -> Callable[[], None]:
        """Wrap the model's `generate` to learn each call's prompt; returns the function that undoes it."""
        model: Any = self.model
        original = model.generate
        is_own = "generate" in vars(model)

        @functools.wraps(original)
        def generate(*args: Any, **kwargs: Any) -> Any:
            self.check_claimed()
            self._check_beams(kwargs)
            outer = self._num_prompt
            self._num_prompt = _num_prompt_of(*args, **kwargs)
            try:
                return original(*args, **(kwargs | {"disable_compile": True}))
            finally:
                self._num_prompt = outer

        def restore() -> None:
            if is_own:
                model.generate = original
            else:
                del model.generate

        model.generate = generate
        return restore

    def _begin_pass(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.check_claimed()
        with _LOCK:
            thread = threading.get_ident()
            if self._running_on not in (None, thread):  # its own earlier pass was interrupted
                raise RuntimeError("the steered model is already running: it runs one pass at a time")
            self._running_on = thread
        given = self._signature.bind(*args, **kwargs).arguments
        tokens = given.get("input_ids")
        tokens = given.get("inputs_embeds") if tokens is None else tokens
        if tokens is None:
            return  # the decoder says what is missing
        cache = given.get("past_key_values")
        first = 0 if cache is None else int(cache.get_seq_length())
        batch, width = tokens.shape[:2]
        mask = given.get("attention_mask")
        last: int | Tensor
        if self._num_prompt is not None:
            last = self._num_prompt - 1
        elif first and self._has_run:
            last = first - 1
        else:
            last = _last_attended(mask, batch, first + width)
        self._has_run = True
        start = _first_attended(mask, batch, first + width)
        self._place = PassPlace(batch, width, first, start, last, tokens.device)
        self._tokens = self._place.tokens_by_coverage({entry.applied.positions for entry in self._entries()})

    def _end_pass(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._running_on == threading.get_ident():  # not the pass of a rejected caller
            self._tokens = None
            self._running_on = None

    def _hook_at(self, place: Place) -> Callable[[nn.Module, Any, Any], Any]:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            if self._tokens is None:
                raise RuntimeError("a part of the steered model was run on its own: run the whole decoder")
            activation = activation_of(output)
            flat = activation.reshape(-1, activation.shape[-1])
            self._read(place, flat, is_before=True)
            for covering, tokens in self._tokens.items():
                here = [entry for entry in self._entries() if entry.is_at(place, covering)]
                if not here:
                    continue
                chosen = None if tokens is None else tokens.to(flat.device)
                before = (flat if chosen is None else flat.index_select(0, chosen)).to(torch.float32)
                if any(entry.gate is not None for entry in here):
                    steered = apply_gated(here, place, before, chosen)
                else:
                    steered = self._change(here, place, covering, flat.device).apply(before)
                steered = steered.to(flat.dtype)
                flat = steered if chosen is None else flat.index_copy(0, chosen, steered)
            self._read(place, flat, is_before=False)
            changed = flat.view_as(activation)
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        return hook

    def _change(self, here: Sequence[Entry], place: Place, covering: _Covering, device: torch.device) -> PlaceChange:
        """What `here` do at `place`, cached until the contexts change."""
        change = self._changes.get((place, covering, device))
        if change is None:
            made = change_at([entry.applied for entry in here], place).to(device)
            change = self._changes[place, covering, device] = made
        return change

    def _read(self, place: Place, flat: Tensor, *, is_before: bool) -> None:
        """Judge the gates and keep the scores that are read at `place`."""
        assert self._place is not None
        for entry in self._entries():
            if entry.gate is not None and (entry.gate.place, entry.gate.is_before) == (place, is_before):
                entry.gate.judge(flat, self._place, entry.applied.positions)
        for scores in self._readers.values():
            if scores.is_before == is_before and place in scores.readings:
                scores.note(place, flat, self._place)

    def _check_beams(self, options: Mapping[str, Any]) -> None:
        """Raise `RuntimeError` for a beam search with a gate that stays open: beams change rows from pass to pass."""
        given = options.get("generation_config") or getattr(self.model, "generation_config", None)
        num_beams = options.get("num_beams") or getattr(given, "num_beams", None) or 1
        if num_beams > 1 and any(entry.gate is not None and entry.gate.is_latched for entry in self._entries()):
            raise RuntimeError('a gate with latch "rest" cannot follow beams: use latch "token", or num_beams=1')


_Covering: TypeAlias = frozenset[Positions]
"""Of the positions in use, those that cover a token."""

_LOCK = threading.Lock()
_STEERED: dict[nn.Module, SteeredModel] = {}
"""The models being steered, by their decoders. Guarded by `_LOCK`, as is the start of a pass."""

_CLAIMED: ContextVar[tuple[object, ...]] = ContextVar("claimed", default=())
"""The claims of the current thread or task on the models steered by it or by what started it."""


def _num_prompt_of(inputs: Tensor | None = None, *args: Any, **kwargs: Any) -> int:
    """The number of tokens in the prompt of a call of `generate`, including those already in a given cache."""
    mask = kwargs.get("attention_mask")
    candidates = (kwargs.get("inputs_embeds"), mask, inputs, kwargs.get("input_ids"))
    for tokens in candidates:
        if tokens is not None:
            return int(tokens.shape[1])
    return 1  # generation starts from the BOS token alone


def _last_attended(mask: Any, batch: int, length: int) -> int | Tensor:
    """The position of the last token that each row attends to, counting those in the cache."""
    if not isinstance(mask, Tensor) or mask.shape != (batch, length):
        return length - 1
    return ((mask != 0) * torch.arange(length, device=mask.device)).argmax(-1, keepdim=True)


def _first_attended(mask: Any, batch: int, length: int) -> int | Tensor:
    """The position of the first token that each row attends to, counting those in the cache."""
    if not isinstance(mask, Tensor) or mask.shape != (batch, length):
        return 0
    return (mask != 0).to(torch.int64).argmax(-1, keepdim=True)
