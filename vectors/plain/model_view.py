"""PlainModelView: a transformers model and its tokenizer as training sees them (`vectors.training.model_view`).

Nothing is scheduled: each call runs at once. The tokens before a prompt's last one are computed once, and the last
token under all steerings together.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from vectors.applied import resolve_vector
from vectors.data.items import Message
from vectors.errors import InvalidMethod
from vectors.plain.rows import Changes, Row, RowChanges, RowHooks
from vectors.sites import find_sites
from vectors.training.model_view import Continuations, Steering
from vectors.vocabulary import Site

MAX_ROWS = 64
"""The most steerings of one prompt that run together, which bounds the memory of their KV caches."""


class PlainModelView:
    """`model` and `tokenizer` as a view. `close` removes its hooks from the model.

    Raises `InvalidMethod` for a model in training mode, where dropout makes answers random, and `SitesNotFound`.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        if model.training:
            raise InvalidMethod("the model is in training mode, where dropout changes its answers: call model.eval()")
        sites = find_sites(model)
        text_config = model.config.get_text_config(decoder=True)
        self._model = model
        self._tokenizer = tokenizer
        self._hooks = RowHooks(sites)
        self.model_id = _name_of(model)
        self.num_layers = sites.num_layers
        self.hidden_size = sites.hidden_size
        self.sites = sites.sites
        self.max_length = int(getattr(text_config, "max_position_embeddings", 0) or sys.maxsize)
        self.has_chat_template = tokenizer.chat_template is not None

    def close(self) -> None:
        """Remove the hooks from the model."""
        self._hooks.close()

    def encode(self, text: str) -> tuple[int, ...]:
        """See `vectors.training.model_view.ModelView.encode`."""
        return self._encode(text, add_special_tokens=True)

    def encode_chat(self, messages: Sequence[Message], reply: str = "") -> tuple[int, ...]:
        """See `vectors.training.model_view.ModelView.encode_chat`."""
        turns = [{"role": message.role, "content": message.content} for message in messages]
        try:
            rendered = self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        except Exception as error:  # a template is the model author's program and may raise anything
            raise InvalidMethod(
                f"prompt: the chat template rejects these messages: {str(error)[:500]}", "prompt"
            ) from error
        return self._encode(f"{rendered}{reply}", add_special_tokens=False)

    def activations(
        self, prompts: Iterable[tuple[int, ...]], sites: Sequence[Site]
    ) -> Iterator[tuple[int, Mapping[Site, Tensor]]]:
        """See `vectors.training.model_view.ModelView.activations`."""
        for index, prompt in enumerate(prompts):
            yield index, self._read(prompt, sites)[1]

    def answers(
        self, prompts: Sequence[tuple[int, ...]], token_ids: Sequence[tuple[int, ...]], sites: Sequence[Site]
    ) -> Iterator[tuple[int, tuple[Tensor, Mapping[Site, Tensor]]]]:
        """See `vectors.training.model_view.ModelView.answers`."""
        for index, (prompt, wanted) in enumerate(zip(prompts, token_ids, strict=True)):
            logits, found = self._read(prompt, sites)
            yield index, (logits[list(wanted)].float().cpu(), found)

    def _read(self, prompt: tuple[int, ...], sites: Sequence[Site]) -> tuple[Tensor, Mapping[Site, Tensor]]:
        """The logits `[vocabulary]` after a prompt, and the activations `[layers, hidden]` at its last token."""
        with self._hooks.rows([Row({})], capture=sites) as captured:
            logits = self._run([prompt]).logits[0, -1]
        layers = range(self.num_layers)
        return logits, {site: torch.cat([captured[site, layer] for layer in layers]).cpu() for site in sites}

    def next_token_logits(
        self,
        prompts: Sequence[tuple[int, ...]],
        token_ids: Sequence[tuple[int, ...]],
        steerings: Sequence[tuple[Steering, ...]],
    ) -> Iterator[tuple[int, Tensor]]:
        """See `vectors.training.model_view.ModelView.next_token_logits`."""
        changes = [self._changes_of(steering) for steering in steerings]
        groups = _alike_before_the_last_token(changes, steerings)
        for index, (prompt, wanted) in enumerate(zip(prompts, token_ids, strict=True)):
            found = torch.empty(len(steerings), len(wanted))
            for numbers in groups:
                own = [changes[number].of_prompt(len(prompt)) for number in numbers]
                found[numbers] = self._branch(prompt, own, wanted)
            yield index, found

    def continuation_logprobs(
        self, queries: Iterable[Continuations]
    ) -> Iterator[tuple[int, tuple[tuple[float, ...], ...]]]:
        """See `vectors.training.model_view.ModelView.continuation_logprobs`."""
        for index, query in enumerate(queries):
            row = Row(self._changes_of(query.steering).of_prompt(len(query.prompt)))
            yield index, tuple(self._continuation(query.prompt, choice, row) for choice in query.choices)

    def _changes_of(self, steering: tuple[Steering, ...]) -> Changes:
        applied = [resolve_vector(entry.vector, self, scale=entry.scale) for entry in steering]
        return Changes(applied, self._model.device)

    def _encode(self, text: str, *, add_special_tokens: bool) -> tuple[int, ...]:
        encoded = self._tokenizer(
            text, add_special_tokens=add_special_tokens, truncation=False, padding=False, verbose=False
        )
        return tuple(encoded["input_ids"])

    def _continuation(self, prompt: tuple[int, ...], choice: tuple[int, ...], row: Row) -> tuple[float, ...]:
        """The log-probability of each token of `choice` after `prompt`."""
        with self._hooks.rows([row]):
            logits = self._run([(*prompt, *choice)]).logits[0, len(prompt) - 1 : -1]
        logprobs = torch.log_softmax(logits.float(), dim=-1)
        tokens = torch.tensor(choice, device=logprobs.device)
        return tuple(logprobs.gather(1, tokens.unsqueeze(1)).squeeze(1).tolist())

    def _branch(self, prompt: tuple[int, ...], changes: Sequence[RowChanges], wanted: tuple[int, ...]) -> Tensor:
        """Logits `[changes, wanted]` (CPU) after a prompt that they all steer alike except at its end."""
        before, last = prompt[:-1], prompt[-1:]
        cache = None
        if before:
            with self._hooks.rows([Row(changes[0])]):
                cache = self._run([before], use_cache=True).past_key_values
        found = []
        for number in range(0, len(changes), MAX_ROWS):
            rows = [Row(own, first=len(before)) for own in changes[number : number + MAX_ROWS]]
            options: dict[str, Any] = {}
            is_last = number + MAX_ROWS >= len(changes)
            past = cache if is_last else copy.deepcopy(cache)  # each group of rows widens and extends its own copy
            if past is not None:
                past.reorder_cache(torch.zeros(len(rows), dtype=torch.int64, device=self._model.device))
                options = {"past_key_values": past, "use_cache": True}
                if any(past.is_linear):  # some hybrid models count their positions from 0 in every pass
                    options["position_ids"] = torch.full((1, 1), len(before), device=self._model.device)
            with self._hooks.rows(rows):
                logits = self._run([last] * len(rows), **options).logits
            found.append(logits[:, -1, list(wanted)].float().cpu())
        return torch.cat(found)

    def _run(self, tokens: Sequence[Sequence[int]], **options: Any) -> Any:
        """The model's output for rows of tokens of equal length."""
        with torch.inference_mode():
            return self._model(
                input_ids=torch.tensor([list(row) for row in tokens], device=self._model.device),
                **{"use_cache": False, **options},
            )


def _name_of(model: PreTrainedModel) -> str:
    """The model's hub id, the name of its folder, or its architecture."""
    place = model.config._name_or_path
    if place and Path(place).is_dir():
        return Path(place).resolve().name
    return place or type(model).__name__


def _alike_before_the_last_token(
    changes: Sequence[Changes], steerings: Sequence[tuple[Steering, ...]]
) -> list[list[int]]:
    """The numbers of steerings, grouped by what they do to the beginning of a prompt."""
    alike: dict[tuple[tuple[str, float], ...], list[int]] = {}
    for number, (own, steering) in enumerate(zip(changes, steerings, strict=True)):
        key = tuple((entry.vector.revision, entry.scale) for entry in steering) if own.may_touch_prompt else ()
        alike.setdefault(key, []).append(number)
    return list(alike.values())
