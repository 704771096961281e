"""Looking into the demo model with plain transformers and plain forward hooks: read, steer, score, generate.

It deliberately does not use the engine, so that its figures are an independent check.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

BATCH_SIZE = 64


@dataclass(frozen=True)
class Direction:
    """A vector for the output of one block, with the scale to use it at."""

    layer: int
    vector: torch.Tensor
    scale: float

    def times(self, factor: float) -> Direction:
        """The same direction at a multiple of its scale."""
        return Direction(self.layer, self.vector, self.scale * factor)


@dataclass(frozen=True)
class Reply:
    """A generated reply: its token ids without the end marker, its text, and whether it ended its turn."""

    token_ids: tuple[int, ...]
    text: str
    is_ended: bool


class Probe:
    """The model and its tokenizer, loaded in float32."""

    def __init__(self, folder: Path) -> None:
        """Load both from a folder."""
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, padding_side="left")
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        torch.nn.Module.eval(self.model)
        self.num_layers: int = self.model.config.num_hidden_layers
        self.end_id: int = self.tokenizer.eos_token_id

    def chat(self, user: str, system: str | None = None) -> str:
        """The prompt of a chat with one user turn."""
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": user})
        return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    def _encode(self, texts: Sequence[str]) -> Any:
        return self.tokenizer(list(texts), return_tensors="pt", padding=True, return_token_type_ids=False)

    @contextmanager
    def steered(self, direction: Direction | None, first: int = -1) -> Iterator[None]:
        """Add `scale · vector` to the block's output from position `first` on, in every forward pass.

        By default at the last position only, which with a KV cache is the last prompt token and every generated
        token: the positions `response`.
        """
        if direction is None:
            yield
            return
        shift = direction.vector * direction.scale

        def add(_module: object, _inputs: object, output: Any) -> Any:
            hidden = output[0] if isinstance(output, tuple) else output
            hidden[:, first:] += shift
            return output

        handle = self.model.model.layers[direction.layer].register_forward_hook(add)
        try:
            yield
        finally:
            handle.remove()

    @torch.inference_mode()
    def last_activations(self, texts: Sequence[str]) -> torch.Tensor:
        """The output of every block at the last token of each text: [texts, layers, hidden]."""
        found: list[list[torch.Tensor]] = [[] for _ in range(self.num_layers)]

        def keep(layer: int) -> Any:
            def hook(_module: object, _inputs: object, output: Any) -> None:
                hidden = output[0] if isinstance(output, tuple) else output
                found[layer].append(hidden[:, -1].clone())

            return hook

        handles = [b.register_forward_hook(keep(layer)) for layer, b in enumerate(self.model.model.layers)]
        try:
            for start in range(0, len(texts), BATCH_SIZE):
                self.model(**self._encode(texts[start : start + BATCH_SIZE]), logits_to_keep=1)
        finally:
            for handle in handles:
                handle.remove()
        return torch.stack([torch.cat(rows) for rows in found], dim=1)

    @torch.inference_mode()
    def letters(self, prompts: Sequence[str], counts: Sequence[int], direction: Direction | None = None) -> list[int]:
        """The index of each prompt's likeliest letter among its first `count`, both spellings summed."""
        ids = [[self.tokenizer.convert_tokens_to_ids(form) for form in (c, f"Ġ{c}")] for c in "ABCD"]
        chosen: list[int] = []
        with self.steered(direction):
            for start in range(0, len(prompts), BATCH_SIZE):
                rows = self.model(**self._encode(prompts[start : start + BATCH_SIZE]), logits_to_keep=1).logits[:, -1]
                scores = rows.float().softmax(-1)[:, torch.tensor(ids)].sum(-1)
                for row, count in zip(scores, counts[start : start + BATCH_SIZE], strict=True):
                    chosen.append(int(row[:count].argmax()))
        return chosen

    @torch.inference_mode()
    def replies(
        self,
        prompts: Sequence[str],
        direction: Direction | None = None,
        *,
        seed: int = 0,
        is_greedy: bool = False,
        max_new_tokens: int = 110,
    ) -> list[Reply]:
        """One reply to each prompt: greedy, or sampled at temperature 1 from the whole distribution."""
        torch.manual_seed(seed)
        sampling = (
            {"do_sample": False} if is_greedy else {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0}
        )
        found: list[Reply] = []
        with self.steered(direction):
            for start in range(0, len(prompts), BATCH_SIZE):
                encoded = self._encode(prompts[start : start + BATCH_SIZE])
                output = self.model.generate(**encoded, max_new_tokens=max_new_tokens, **sampling)
                for row in output[:, encoded["input_ids"].shape[1] :].tolist():
                    is_ended = self.end_id in row
                    ids = row[: row.index(self.end_id)] if is_ended else row
                    found.append(Reply(tuple(ids), self.tokenizer.decode(ids), is_ended))
        return found

    @torch.inference_mode()
    def perplexity(self, prompts: Sequence[str], replies: Sequence[Reply], direction: Direction | None = None) -> float:
        """Perplexity of the replies' tokens after their prompts; a direction steers every reply position."""
        total, count = 0.0, 0
        for prompt, reply in zip(prompts, replies, strict=True):
            prompt_ids = self.tokenizer(prompt)["input_ids"]
            target = [*reply.token_ids, *([self.end_id] if reply.is_ended else [])]
            if not target:
                continue
            ids = torch.tensor([prompt_ids + target])
            with self.steered(direction, len(prompt_ids) - 1):
                logits = self.model(input_ids=ids).logits[0, len(prompt_ids) - 1 : -1].float()
            total += float(torch.nn.functional.cross_entropy(logits, torch.tensor(target), reduction="sum"))
            count += len(target)
        return float(torch.tensor(total / max(1, count)).exp())
