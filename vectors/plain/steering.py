"""`with steer(model, vector):` steers a plain transformers model, in `model(...)` and in `model.generate(...)`.

Activations of the same tokens change in the same way as on a server (see `docs/steering.md`). Hooks on the steered
modules change their outputs. A hook on the decoder tells which tokens of a forward pass belong to the prompt.
`generate` is wrapped while the context is open, because only its arguments say how long the prompt is when a pass has
only a chunk of it, or repeats the answer without a KV cache.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from vectors.applied import AppliedVector, change_at, resolve_vector
from vectors.operations import PlaceChange
from vectors.positions import Phase, coverage_of
from vectors.sites import ModelSites, activation_of, find_sites
from vectors.vector import SteeringVector
from vectors.vocabulary import Operation, Place, Positions, parse_layers


@contextmanager
def steer(
    model: nn.Module,
    vectors: SteeringVector | Sequence[SteeringVector],
    *,
    scale: float | None = None,
    layers: str | Sequence[int] | None = None,
    positions: Positions | None = None,
    operation: Operation | None = None,
    preserve_norm: bool = False,
    min: float | None = None,
    max: float | None = None,
) -> Iterator[None]:
    """Steer `model`, a causal language model of transformers, with one vector or several until the context ends.

    `scale`, `layers` (numbers, or text such as `"12-16,20"`), `positions`, `operation`, and `min` and `max`, the
    interval of `cap`, apply to every vector given; None means the vector's own default. Contexts nest: all vectors then
    steer together, in the order entered, like the entries of one request. Nest them to use several vectors with
    different settings.

    What is the prompt:

    - In `generate`, the prompt is the call's input, padded on the left, and what follows is the response.
      Beams, several answers, assistants and chunked prefill do not change this. Each call starts afresh.
    - In `model(...)`, a pass without a filled KV cache is a prompt that ends at each row's last attended token (a mask
      that is not `[batch, tokens]` is taken to have no padding on the right). A pass that continues from a cache is the
      response, unless it is the first of the context: then it is the rest of a prompt.

    A plain model cannot tell the parts of a response apart, so all of it is steered, whatever the vector's `parts`.

    While the context is open, only the thread or asyncio task that opened it can use the model, along with what it
    starts in its context (`asyncio.to_thread`). A pass, a call of `generate` or a `steer` from anywhere else raises
    `RuntimeError`, as does a second pass at the same time. Nothing stays on the model after the context ends, however
    it ends. `generate` does not compile the model in the meantime.

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
    steered = _claim(model, sites)
    context = object()
    try:
        steered.add(context, applied)
        yield
    finally:
        _give_back(steered, context)


def _claim(model: nn.Module, sites: ModelSites) -> _SteeredModel:
    """The model's state, created if no context is open. Raises `RuntimeError` if another claims it."""
    with _LOCK:
        steered = _STEERED.get(sites.decoder)
        if steered is None:
            _check_can_hook(model, sites.decoder)
            steered = _STEERED[sites.decoder] = _SteeredModel(model, sites)
            _CLAIMED.set((*_CLAIMED.get(), steered.claim))
        elif steered.model is not model:
            raise RuntimeError("the model is part of one that is already steered: pass the same object to every steer")
        steered.check_claimed()
        return steered


def _give_back(steered: _SteeredModel, context: object) -> None:
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


class _SteeredModel:
    """A model while a context is open: what steers it, its hooks, and where its sequences stand."""

    def __init__(self, model: nn.Module, sites: ModelSites) -> None:
        self.model = model
        self.sites = sites
        self.claim = object()  # not the model: what was started within the context may keep it for long
        self._contexts: dict[object, Sequence[AppliedVector]] = {}
        self._changes: dict[tuple[Place, Phase, torch.device], PlaceChange] = {}
        self._hooks: dict[Place, RemovableHandle] = {}
        self._signature = inspect.signature(sites.decoder.forward)
        # of the pass under way: its thread, and by phase the numbers of its tokens [batch · width] (None: all)
        self._running_on: int | None = None
        self._tokens: Mapping[Phase, Tensor | None] | None = None
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

    def add(self, context: object, applied: Sequence[AppliedVector]) -> None:
        """Also steer by `applied`, until `context` is removed."""
        self._contexts[context] = applied
        self._hook_places()

    def remove(self, context: object) -> bool:
        """End `context`. True if it was the last one; nothing is then left on the model."""
        self._contexts.pop(context, None)
        self._hook_places()
        if not self._contexts:
            self._undo.close()
        return not self._contexts

    def _hook_places(self) -> None:
        """Keep hooks at exactly the places that are steered."""
        self._changes.clear()
        places = {place for one in self._applied() if one.is_active for place in one.places}
        for place in self._hooks.keys() - places:
            self._hooks.pop(place).remove()
        for place in places - self._hooks.keys():
            site, layer = place
            self._hooks[place] = self.sites.modules[site][layer].register_forward_hook(self._hook_at(place))

    def _applied(self) -> list[AppliedVector]:
        return [one for applied in self._contexts.values() for one in applied]

    def _wrap_generate(self) -> Callable[[], None]:
        """Wrap the model's `generate` to learn each call's prompt; returns the function that undoes it."""
        model: Any = self.model
        original = model.generate
        is_own = "generate" in vars(model)

        @functools.wraps(original)
        def generate(*args: Any, **kwargs: Any) -> Any:
            self.check_claimed()
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
        last: int | Tensor
        if self._num_prompt is not None:
            last = self._num_prompt - 1
        elif first and self._has_run:
            last = first - 1
        else:
            last = _last_attended(given.get("attention_mask"), batch, first + width)
        self._has_run = True
        self._tokens = _tokens_by_phase(batch, width, first, last, tokens.device)

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
            for phase, tokens in self._tokens.items():
                change = self._change(place, phase, flat.device)
                if change.is_nothing:
                    continue
                if tokens is None:
                    flat = change.apply(flat.to(torch.float32)).to(flat.dtype)
                else:
                    tokens = tokens.to(flat.device)
                    steered = change.apply(flat.index_select(0, tokens).to(torch.float32))
                    flat = flat.index_copy(0, tokens, steered.to(flat.dtype))
            changed = flat.view_as(activation)
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        return hook

    def _change(self, place: Place, phase: Phase, device: torch.device) -> PlaceChange:
        """The change at `place` for tokens of `phase`, cached until the contexts change."""
        change = self._changes.get((place, phase, device))
        if change is None:
            covering = [one for one in self._applied() if coverage_of(one.positions).covers(phase)]
            change = self._changes[place, phase, device] = change_at(covering, place).to(device)
        return change


_LOCK = threading.Lock()
_STEERED: dict[nn.Module, _SteeredModel] = {}
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


def _tokens_by_phase(
    batch: int, width: int, first: int, last: int | Tensor, device: torch.device
) -> dict[Phase, Tensor | None]:
    """The phases of tokens `first … first + width - 1` of every row, whose prompt ends with token `last`."""
    if isinstance(last, int) and last < first:
        return {Phase.RESPONSE: None}
    numbers = torch.arange(first, first + width, device=device).expand(batch, width)
    phases = {Phase.PROMPT: numbers < last, Phase.BOUNDARY: numbers == last, Phase.RESPONSE: numbers > last}
    return {phase: chosen.flatten().nonzero().squeeze(1) for phase, chosen in phases.items()}
