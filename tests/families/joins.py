"""How the output of each site joins the residual stream, measured in the plain model.

One block at a time, a direction is added to a site's output at one token, and the change of the block's output at that
token is compared with it. Meanwhile every module of the block that has a matrix repeats what it gave without the
direction, so that only norms, scales and sums react: the change is what reaches the stream directly.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from vectors.sites import ModelSites, activation_of
from vectors.vocabulary import Site

_TOKENS = (5, 77, 130, 9, 301, 44, 8, 260)
_AT = 5  # the token that is changed
_CLOSE = 1e-4


@dataclass(frozen=True)
class _Pass:
    """What one pass showed: by module its outputs, call by call; and the activations that went into it."""

    outputs: Mapping[nn.Module, list[Any]]
    inputs: Mapping[nn.Module, Tensor]

    def at(self, module: nn.Module) -> Tensor:
        """The activation of the module's first output at the changed token."""
        return _token(activation_of(self.outputs[module][0]))


def describe_sites(model: PreTrainedModel, sites: ModelSites) -> dict[str, str]:
    """By site: its module in the block, and how its output joins; alike in all blocks, or each way once.

    `block` says what else in the block adds to the stream, where there is more.
    """
    known = {module: name for name, module in model.named_modules()}
    found: dict[str, list[str]] = {}
    for layer, block in enumerate(sites.modules["residual"]) if "residual" in sites.modules else ():
        own: dict[Site, nn.Module] = {
            site: modules[layer] for site, modules in sites.modules.items() if site != "residual"
        }
        names: dict[str, str] = {
            site: known[module].removeprefix(known[block]).lstrip(".") for site, module in own.items()
        }
        words = _Block(model, block, own).describe()
        for place in (*names, "block"):
            name = f"`{names[place]}`" if place in names else ""
            found.setdefault(place, []).append(": ".join(part for part in (name, words.get(place, "")) if part))
    described = {site: " / ".join(dict.fromkeys(words)) for site, words in found.items()}
    return {site: words for site, words in described.items() if words}


class _Block:
    """One block of a model, and the modules of its sites."""

    def __init__(self, model: PreTrainedModel, block: nn.Module, sites: Mapping[Site, nn.Module]) -> None:
        self._model = model
        self._block = block
        self._sites = sites
        self._with_matrix = [
            module
            for module in block.modules()
            if module is not block and any(parameter.ndim > 1 for parameter in module.parameters(recurse=False))
        ]
        self._before = self._run()

    def describe(self) -> dict[str, str]:
        """The words for each site, and for the block."""
        if activation_of(self._before.outputs[self._block][0]).numel() != self._before.inputs[self._block].numel():
            return {"block": "several residual streams"}
        words: dict[str, str] = {}
        for site, module in self._sites.items():
            words[site] = self._norm(module) if site == "post_attention_norm" else self._branch(site, module)
        words["block"] = self._rest()
        return words

    def _branch(self, site: Site, module: nn.Module) -> str:
        joins = self._joins(module)
        other = self._sites.get("attention")
        if site == "mlp" and other is not None and not self._reacts(module, other):
            return f"{joins}, beside the attention"
        return joins

    def _norm(self, module: nn.Module) -> str:
        joins = self._joins(module)
        if joins != "not added":
            return f"of {self._read_from(module)}, {joins}"
        readers = [site for site, other in self._sites.items() if other is not module and self._reacts(other, module)]
        return f"of {self._read_from(module)}, read by {' and '.join(readers)}"

    def _read_from(self, norm: nn.Module) -> str:
        """What a norm normalises."""
        taken = _token(self._before.inputs[norm])
        attention = self._sites.get("attention")
        if attention is not None and torch.allclose(taken, self._before.at(attention), atol=_CLOSE):
            return "the attention's output"
        if torch.allclose(taken, _token(self._before.inputs[self._block]), atol=_CLOSE):
            return "the block's input"
        return "the stream"

    def _joins(self, module: nn.Module) -> str:
        """How what is added to the output of `module` arrives in the block's output."""
        changes = []
        for seed, length in ((1, 1.0), (2, 1.0), (1, 2.0)):
            direction = _direction(self._before.at(module), seed) * length
            after = self._run(added=(module, direction), repeated=self._with_matrix)
            changes.append((direction, after.at(self._block) - self._before.at(self._block)))
        return self._words_for(changes)

    def _reacts(self, reader: nn.Module, source: nn.Module) -> bool:
        """Whether the output of `reader` changes with that of `source`, in the same block."""
        after = self._run(added=(source, _direction(self._before.at(source), 1)))
        return not torch.allclose(after.at(reader), self._before.at(reader), atol=_CLOSE)

    def _rest(self) -> str:
        """The parts of the block that add to the stream besides its sites, and what becomes of the stream itself."""
        inside = {module for site in self._sites.values() for module in site.modules()}
        direction = _direction(_token(self._before.inputs[self._block]), 1)
        held = self._run(into=direction, repeated=self._with_matrix).at(self._block)
        parts = []
        for name, child in self._block.named_children():
            free = {module for module in child.modules() if module not in inside}
            if not free & set(self._with_matrix):
                continue
            repeated = [module for module in self._with_matrix if module not in free]
            after = self._run(into=direction, repeated=repeated).at(self._block)
            if not torch.allclose(after, held, atol=_CLOSE):
                parts.append(f"`{name}`")
        words = [f"also {', '.join(parts)}"] if parts else []
        stream = self._words_for([(direction, held - self._before.at(self._block))])
        if stream != "added":
            words.append(f"the stream itself: {stream}")
        return "; ".join(words)

    def _words_for(self, changes: Sequence[tuple[Tensor, Tensor]]) -> str:
        """The words for pairs of what was added and what arrived; the third, if given, is twice the first."""
        if all(_are_close(arrived, torch.zeros_like(arrived)) for _, arrived in changes):
            return "not added"
        factors = [float((arrived @ direction) / (direction @ direction)) for direction, arrived in changes]
        if all(_are_close(arrived, factors[0] * direction) for direction, arrived in changes):
            return "added" if abs(factors[0] - 1) < _CLOSE else f"added × {self._named(factors[0])}"
        by_channel = changes[0][1] / changes[0][0]
        if len(changes) > 1 and all(_are_close(arrived, by_channel * direction) for direction, arrived in changes):
            return "scaled by channel, then added"
        return "normed, then added" if len(changes) > 1 else "normed"

    def _named(self, factor: float) -> str:
        """Where `factor` comes from: a scale of the checkpoint, or a setting of the configuration."""
        scales = [tensor for tensor in self._block.state_dict().values() if tensor.numel() == 1]
        if any(abs(float(scale) - factor) < _CLOSE for scale in scales):
            return "a learned scale"
        config = self._model.config.get_text_config(decoder=True)
        for what, divisor in (("", 1.0), (" / √layers", config.num_hidden_layers**0.5)):
            names = [name for name, value in _numbers(vars(config)) if abs(value / divisor - factor) < _CLOSE]
            if names:
                return f"`{min(names, key=len)}`{what}"
        return "a scale of its own"

    @torch.no_grad()
    def _run(
        self,
        *,
        added: tuple[nn.Module, Tensor] | None = None,
        into: Tensor | None = None,
        repeated: Collection[nn.Module] = (),
    ) -> _Pass:
        """A pass in which a direction is `added` to a module's output, or to what goes `into` the block.

        The modules of `repeated` give what they gave at first.
        """
        outputs: dict[nn.Module, list[Any]] = {}
        inputs: dict[nn.Module, Tensor] = {}
        again = {module: iter(self._before.outputs[module]) for module in repeated if module in self._before.outputs}

        def enter(module: nn.Module, args: Any, kwargs: Any) -> Any:
            taken = _first(args, kwargs)
            if module is self._block and into is not None:
                taken = _changed(taken, into)
                args, kwargs = ((taken, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": taken})
            if taken is not None:
                inputs.setdefault(module, taken)
            return args, kwargs

        def leave(module: nn.Module, args: Any, output: Any) -> Any:
            if module in again:
                output = next(again[module])
            if added is not None and module is added[0]:
                changed = _changed(activation_of(output), added[1])
                output = (changed, *output[1:]) if isinstance(output, tuple) else changed
            outputs.setdefault(module, []).append(output)
            return output

        with ExitStack() as stack:
            for module in self._block.modules():
                stack.callback(module.register_forward_pre_hook(enter, with_kwargs=True).remove)
                stack.callback(module.register_forward_hook(leave).remove)
            self._model(input_ids=torch.tensor([_TOKENS]), use_cache=False)
        return _Pass(outputs, inputs)


def _numbers(settings: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in settings.items():
        if isinstance(value, float) and not name.startswith("_"):
            yield name, value


def _first(args: Any, kwargs: Any) -> Tensor | None:
    """The activations that a module was called with."""
    taken = args[0] if args else kwargs.get("hidden_states")
    return taken if isinstance(taken, Tensor) else None


def _token(activation: Tensor) -> Tensor:
    return activation.reshape(-1, activation.shape[-1])[_AT]


def _changed(activation: Tensor | None, direction: Tensor) -> Tensor:
    assert activation is not None
    changed = activation.clone()
    changed.reshape(-1, changed.shape[-1])[_AT] += direction
    return changed


def _direction(like: Tensor, seed: int) -> Tensor:
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(seed))


def _are_close(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=1e-3, atol=_CLOSE * 10)
