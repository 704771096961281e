"""Logits to tokens: every sampling parameter per row of the batch.

Order, as in vLLM: penalties, bias and grammar on the logits, temperature, then min_p, top_k and top_p on the
probabilities.
Among equal logits, which bfloat16 often has, the token with the lowest id ranks first: greedy takes it, `top_k` and
`top_p` keep it before the others, and it is the first of the likeliest. `min_p` keeps equal ones together.
Each request draws from its own random stream, one number per token, so neighbours and batch order change nothing.
A row in which no token may come is told apart (`NO_TOKEN`), and the other rows are drawn as if it were not there.
Log-probabilities are those of the unmodified logits.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from server.engine.request import SamplingParams, TokenLogprobs

NO_TOKEN = -1
"""In the place of a token where none may come."""


class RowSampler:
    """One request's sampling state: its random stream and the tokens that its penalties count.

    `eos_token_ids` end the request unless it ignores them.
    """

    def __init__(self, params: SamplingParams, eos_token_ids: frozenset[int], prompt: Sequence[int]) -> None:
        self.params = params
        self._random: np.random.Generator | None = None
        ends = params.stop_token_ids if params.ignore_eos else params.stop_token_ids | eos_token_ids
        self.end_token_ids = ends
        self._prompt = prompt
        self._output: list[int] = []
        self._drawn: float | None = None
        self._seen: Tensor | None = None
        self._counts: Tensor | None = None

    def draw(self) -> float:
        """The uniform number in [0, 1) for the next token: the same one until that token is recorded."""
        if self._random is None:  # not earlier: most requests of a training draw nothing
            seed = self.params.seed if self.params.seed is not None else secrets.randbits(128)
            self._random = np.random.Generator(np.random.Philox(seed % 2**128))
        if self._drawn is None:
            self._drawn = float(self._random.random())
        return self._drawn

    def record(self, token: int) -> None:
        """Count a sampled token."""
        self._output.append(token)
        self._drawn = None
        if self._counts is not None and self._seen is not None:
            self._counts[token] += 1
            self._seen[token] = True

    @property
    def num_output_tokens(self) -> int:
        """How many tokens this row has drawn."""
        return len(self._output)

    @property
    def changes_logits(self) -> bool:
        """True when this row's logits need a change before a choice is made."""
        params = self.params
        held_back = self.num_output_tokens < params.min_tokens and bool(self.end_token_ids)
        return params.has_penalties or bool(params.logit_bias) or held_back

    def adjust(self, logits: Tensor, allowed: Tensor | None = None) -> None:
        """Apply penalties, bias, grammar and `min_tokens` to this row's float32 logits `[vocabulary]`, in place.

        `allowed`: bool `[vocabulary]`, what the grammar allows; where that is only an end token, the response may end.
        """
        params = self.params
        if params.has_penalties:
            seen, counts = self._penalty_state(logits)
            if params.repetition_penalty != 1.0:
                penalised = torch.where(
                    logits > 0, logits / params.repetition_penalty, logits * params.repetition_penalty
                )
                logits.copy_(torch.where(seen, penalised, logits))
            logits.sub_(counts * params.frequency_penalty + (counts > 0) * params.presence_penalty)
        if params.logit_bias:
            tokens = torch.tensor(list(params.logit_bias), dtype=torch.int64, device=logits.device)
            biases = torch.tensor(list(params.logit_bias.values()), dtype=torch.float32, device=logits.device)
            logits.index_add_(0, tokens, biases)
        if allowed is not None:
            logits.masked_fill_(~allowed.to(logits.device), -torch.inf)
        if self.num_output_tokens < params.min_tokens and self.end_token_ids:
            ends = list(self.end_token_ids)
            kept = logits[ends]
            logits[ends] = -torch.inf
            if allowed is not None and bool((logits == -torch.inf).all()):
                logits[ends] = kept

    def _penalty_state(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        if self._seen is None or self._counts is None:
            counts = torch.zeros(logits.shape[0], dtype=torch.float32, device=logits.device)
            output = torch.tensor(self._output, dtype=torch.int64, device=logits.device)
            counts.index_add_(0, output, torch.ones(len(self._output), device=logits.device))
            seen = counts > 0
            seen[torch.tensor(self._prompt, dtype=torch.int64, device=logits.device)] = True
            self._seen, self._counts = seen, counts
        return self._seen, self._counts


def sample(logits: Tensor, rows: Sequence[RowSampler], allowed: Mapping[int, Tensor] | None = None) -> list[int]:
    """One token for each row of `logits` `[rows, vocabulary]` (any float dtype; not changed).

    `allowed`: bool `[vocabulary]` by the index of each row that has a grammar. A row in which no token may come gets
    `NO_TOKEN`. Until a row's `record` is called, it gets the same token again.
    """
    logits = logits.to(torch.float32)
    allowed = allowed or {}
    changed = [index for index, row in enumerate(rows) if row.changes_logits or index in allowed]
    impossible: set[int] = set()
    if changed:
        logits = logits.clone()
        for index in changed:
            rows[index].adjust(logits[index], allowed.get(index))
        is_possible = torch.isfinite(logits[changed].amax(dim=-1)).tolist()
        impossible = {index for index, possible in zip(changed, is_possible, strict=True) if not possible}
    groups: dict[_Choose, list[int]] = {}
    for index, row in enumerate(rows):
        if index not in impossible:
            groups.setdefault(_choice_of(row.params), []).append(index)
    tokens = [NO_TOKEN] * len(rows)
    for choose, group in groups.items():
        part = logits if len(group) == len(rows) else logits[group]
        for index, token in zip(group, choose(part, [rows[index] for index in group]), strict=True):
            tokens[index] = token
    return tokens


def logprobs_of(logits: Tensor, tokens: Sequence[int], num_top: Sequence[int]) -> list[TokenLogprobs]:
    """For each row of `logits` `[rows, vocabulary]`: the log-probability of its token and of its likeliest ones."""
    logits = logits.to(torch.float32)
    logprobs = torch.log_softmax(logits, dim=-1)
    chosen = logprobs.gather(1, torch.tensor(tokens, dtype=torch.int64, device=logits.device)[:, None])[:, 0].tolist()
    most = min(max(num_top, default=0), logits.shape[-1])
    if most == 0:
        return [TokenLogprobs(token, value) for token, value in zip(tokens, chosen, strict=True)]
    indices = _likeliest(logits, most)
    values = logprobs.gather(1, indices)
    results = []
    for token, value, num, top_values, top_indices in zip(
        tokens, chosen, num_top, values.tolist(), indices.tolist(), strict=True
    ):
        results.append(TokenLogprobs(token, value, tuple(zip(top_indices[:num], top_values[:num], strict=True))))
    return results


_Choose = Callable[[Tensor, Sequence[RowSampler]], list[int]]
"""Chooses a token for each row of logits; `NO_TOKEN` where no token has a probability."""


def _choice_of(params: SamplingParams) -> _Choose:
    if params.is_greedy:
        return _choose_greedy
    has_filters = params.top_k > 0 or params.top_p < 1.0 or params.min_p > 0.0
    return _choose_filtered if has_filters else _choose_free


def _choose_greedy(logits: Tensor, rows: Sequence[RowSampler]) -> list[int]:
    return [int(token) for token in logits.argmax(dim=-1).tolist()]


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device).unsqueeze(1)


def _probabilities(logits: Tensor, rows: Sequence[RowSampler]) -> Tensor:
    """The probabilities after temperature, in float64 (on mps float32)."""
    wide = logits if logits.device.type == "mps" else logits.to(torch.float64)
    return torch.softmax(wide / _column([row.params.temperature for row in rows], wide), dim=-1)


def _pick(weights: Tensor, rows: Sequence[RowSampler]) -> Tensor:
    """The index drawn from each row of unnormalised `weights`, by the row's random number; `NO_TOKEN` if all are 0."""
    cumulative = weights.cumsum(dim=-1)
    threshold = _column([row.draw() for row in rows], weights) * cumulative[:, -1:]
    picked = torch.searchsorted(cumulative, threshold, right=True)
    last = (weights > 0).long().mul_(torch.arange(1, weights.shape[-1] + 1, device=weights.device)).amax(-1) - 1
    return torch.minimum(picked[:, 0], last)


def _choose_free(logits: Tensor, rows: Sequence[RowSampler]) -> list[int]:
    return [int(token) for token in _pick(_probabilities(logits, rows), rows).tolist()]


def _choose_filtered(logits: Tensor, rows: Sequence[RowSampler]) -> list[int]:
    """A draw from the tokens that every filter keeps: the first ones in the ranking, however many these are."""
    probabilities = _probabilities(logits, rows)
    vocabulary = logits.shape[-1]
    top_k = [row.params.top_k if 0 < row.params.top_k < vocabulary else vocabulary for row in rows]
    ranked = _highest(probabilities, max(top_k))
    rank = torch.arange(ranked.shape[-1], device=logits.device)
    keep = rank < torch.tensor(top_k, device=logits.device).unsqueeze(1)
    keep &= ranked >= _column([row.params.min_p for row in rows], ranked) * ranked[:, :1]
    weights = ranked * keep
    cumulative = weights.cumsum(dim=-1)
    keep &= cumulative - weights < _column([row.params.top_p for row in rows], ranked) * cumulative[:, -1:]
    keep[:, 0] = True  # the likeliest token always stays, also with top_p 0
    kept = _first(probabilities, ranked, keep.sum(dim=-1, keepdim=True))
    return [int(token) for token in _pick(probabilities * kept, rows).tolist()]


def _highest(values: Tensor, number: int) -> Tensor:
    """The highest values of each row, in their order: `[rows, number]`."""
    if number < values.shape[-1]:
        return values.topk(number, dim=-1).values
    return values.sort(dim=-1, descending=True).values


def _first(values: Tensor, highest: Tensor, number: Tensor) -> Tensor:
    """Bool `[rows, vocabulary]`: the `number` `[rows, 1]` tokens of each row that rank first.

    `highest`: the highest of the row's `values` in their order, at least that many.
    """
    lowest = highest.gather(1, number - 1)
    above, equal = values > lowest, values == lowest
    return above | (equal & (equal.cumsum(dim=-1) <= number - above.sum(dim=-1, keepdim=True)))


def _likeliest(values: Tensor, number: int) -> Tensor:
    """The token ids of each row that rank first, in their order: `[rows, number]`."""
    numbers = torch.full((len(values), 1), number, device=values.device)
    kept = _first(values, _highest(values, number), numbers)
    token_ids = kept.nonzero()[:, 1].view(-1, number)
    order = values.gather(1, token_ids).sort(dim=-1, descending=True, stable=True).indices
    return token_ids.gather(1, order)
