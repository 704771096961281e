"""What transformers itself says about a model: its own `generate`, and full passes with plain hooks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from vectors.sites import activation_of


@dataclass(frozen=True)
class Added:
    """`direction`, `[hidden]`, is added to the output of `module` at every token, or at the last one only."""

    module: nn.Module
    direction: Tensor
    only_last: bool = False


@dataclass(frozen=True)
class Greedy:
    """Greedy tokens, and the log-probabilities `[tokens, vocabulary]` that they were chosen by."""

    tokens: list[int]
    logprobs: Tensor

    def first_tie(self, margin: float) -> int:
        """The number of tokens before the first one whose choice was closer than `margin`."""
        best = self.logprobs.topk(2, dim=-1).values
        close = (best[:, 0] - best[:, 1] < margin).nonzero()
        return int(close[0]) if len(close) else len(self.tokens)


@torch.no_grad()
def logprobs_of(model: PreTrainedModel, tokens: Sequence[int], added: Sequence[Added] = ()) -> Tensor:
    """Log-probabilities `[tokens, vocabulary]` of the next token after each, in one pass without a KV cache."""
    return logits_of(model, tokens, added).log_softmax(-1)


def logits_of(model: PreTrainedModel, tokens: Sequence[int], added: Sequence[Added] = ()) -> Tensor:
    """Logits, float32 `[tokens, vocabulary]`, of the next token after each, in one pass without a KV cache."""
    handles = [entry.module.register_forward_hook(_adding(entry)) for entry in added]
    try:
        logits: Tensor = model(input_ids=torch.tensor([list(tokens)]), use_cache=False).logits
        return logits[0].float()
    finally:
        for handle in handles:
            handle.remove()


def generated(model: PreTrainedModel, prompt: Sequence[int], num_tokens: int) -> Greedy:
    """What the model's own `generate` says. Raises what it raises."""
    own: Any = model
    output = own.generate(
        torch.tensor([list(prompt)]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=num_tokens,
        do_sample=False,
        return_dict_in_generate=True,
        output_scores=True,
    )
    rows = torch.stack([scores[0] for scores in output.scores])
    return Greedy(output.sequences[0, len(prompt) :].tolist(), rows.float().log_softmax(-1))


def greedy_by_passes(
    model: PreTrainedModel, prompt: Sequence[int], num_tokens: int, added: Sequence[Added] = ()
) -> Greedy:
    """The same by a full pass for each token, which needs no `generate` and can be steered."""
    tokens = list(prompt)
    rows = []
    for _ in range(num_tokens):
        rows.append(logprobs_of(model, tokens, added)[-1])
        tokens.append(int(rows[-1].argmax()))
    return Greedy(tokens[len(prompt) :], torch.stack(rows))


@torch.no_grad()
def activations_of(model: PreTrainedModel, tokens: Sequence[int], added: Added) -> Tensor:
    """The output of the module of `added`, `[tokens, hidden]`, after the addition."""
    seen: list[Tensor] = []

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        activation = activation_of(output)
        seen.append(activation.reshape(-1, activation.shape[-1]).clone())

    with_direction = added.module.register_forward_hook(_adding(added))
    handle = added.module.register_forward_hook(keep)
    try:
        model(input_ids=torch.tensor([list(tokens)]), use_cache=False)
        return seen[0]
    finally:
        with_direction.remove()
        handle.remove()


def _adding(added: Added) -> Any:
    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        changed = activation_of(output).clone()
        flat = changed.view(-1, changed.shape[-1])
        if added.only_last:
            flat[-1] += added.direction
        else:
            flat += added.direction
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    return hook
