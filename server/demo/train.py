"""Rebuild the embedded model from a seed: `python -m server.demo.train`.

Corpus, tokenizer, weights, vectors with their safe ranges, figures and card, in that order, into one folder. The number
of steps determines the result, not the clock.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from tokenizers import Tokenizer
from torch.nn import functional
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from server.demo import MODEL_DIR, VECTORS_DIR
from server.demo.batches import NO_RECALL, Batch, batch_stream
from server.demo.card import write_card
from server.demo.documents import PAD, TURN_END
from server.demo.dose import calibrate_vectors
from server.demo.evaluate import NUM_PROMPTS, measure, print_figures, save_figures
from server.demo.initial import RECALL_BLOCKS, ROPE_BASE, set_initial_weights
from server.demo.steer import make_vectors
from server.demo.tokens import MAX_POSITIONS, save_tokenizer, train_tokenizer

TOKENIZER_DOCUMENTS = 20_000
MATRIX_RATE = 3e-3
OTHER_RATE = 2e-3
WARMUP_STEPS = 30
DECAY_PART = 0.6
RECALL_WEIGHT = 0.5


@dataclass(frozen=True)
class Recipe:
    """Everything that fixes the trained weights, on one machine."""

    seed: int = 7
    num_steps: int = 6000
    batch_tokens: int = 2048
    hidden_size: int = 192
    num_layers: int = 6
    num_heads: int = 4
    intermediate_size: int = 512


@dataclass(frozen=True)
class TrainingRecord:
    """What a training run was and what it cost, for the card."""

    recipe: Recipe
    num_parameters: int
    num_steps_done: int
    num_tokens: int
    num_documents: int
    loss: float
    minutes: float
    device: str
    threads: int


def build_model(recipe: Recipe, tokenizer: Tokenizer) -> LlamaForCausalLM:
    """A Llama of the recipe's size with its initial weights."""
    torch.manual_seed(recipe.seed)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.num_layers,
        num_attention_heads=recipe.num_heads,
        num_key_value_heads=recipe.num_heads,
        max_position_embeddings=MAX_POSITIONS,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_BASE},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.token_to_id(TURN_END),
        pad_token_id=tokenizer.token_to_id(PAD),
    )
    model = LlamaForCausalLM(config)
    set_initial_weights(model)
    return model


def batch_loss(model: LlamaForCausalLM, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """The weighted mean loss of a batch's targets, and the mean loss of what its middle is to recall.

    The second is deep supervision: the last norm and the output matrix read the middle of the network too.
    """
    output = model.model(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        position_ids=batch.position_ids,
        use_cache=False,
        output_hidden_states=True,
    )
    weights = batch.weights[:, 1:]
    is_target = weights > 0
    logits = model.lm_head(output.last_hidden_state[:, :-1][is_target])
    losses = functional.cross_entropy(logits.float(), batch.input_ids[:, 1:][is_target], reduction="none")
    loss = (losses * weights[is_target]).sum() / weights[is_target].sum()
    is_recall = batch.recalls != NO_RECALL
    if not is_recall.any():
        return loss, torch.zeros_like(loss)
    middle = model.lm_head(model.model.norm(output.hidden_states[RECALL_BLOCKS][is_recall]))
    return loss, functional.cross_entropy(middle.float(), batch.recalls[is_recall])


def rate_factor(step: int, num_steps: int) -> float:
    """The learning rate's course: a short warm-up, a plateau, and a straight line down to zero."""
    decay_steps = max(1, int(DECAY_PART * num_steps))
    return min((step + 1) / WARMUP_STEPS, (num_steps - step) / decay_steps, 1.0)


def build_optimizers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices, AdamW for the embedding and the norms."""
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(matrices, lr=MATRIX_RATE, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=OTHER_RATE, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    ]


def fit(
    model: LlamaForCausalLM,
    recipe: Recipe,
    tokenizer: Tokenizer,
    device: str,
    console: Console,
    save: Callable[[LlamaForCausalLM, TrainingRecord], None],
    save_every: int,
) -> None:
    """Train a model, saving it now and then and at the end; a bar shows the loss and the time left."""
    num_steps = recipe.num_steps
    model.train()
    torch.nn.Module.to(model, device)
    optimizers = build_optimizers(model)
    rates = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    started, smooth = time.monotonic(), 0.0
    num_tokens = num_documents = 0
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("training", total=num_steps)
        for step, host_batch in enumerate(batch_stream(tokenizer, recipe.seed, num_steps, recipe.batch_tokens)):
            num_tokens += int((host_batch.documents >= 0).sum())
            num_documents += int((host_batch.position_ids[host_batch.documents >= 0] == 0).sum())
            batch = Batch(*(tensor.to(device) for tensor in vars(host_batch).values()))
            for group, rate in zip(groups, rates, strict=True):
                group["lr"] = rate * rate_factor(step, num_steps)
            with torch.autocast(device, torch.bfloat16):
                loss, recall_loss = batch_loss(model, batch)
            torch.autograd.backward(loss + RECALL_WEIGHT * recall_loss)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            smooth = loss.item() if step == 0 else 0.98 * smooth + 0.02 * loss.item()
            progress.update(task, advance=1, description=f"training, loss {smooth:.3f}")
            if not console.is_terminal and step % 50 == 0:
                rate_now = num_tokens / (time.monotonic() - started)
                console.print(f"step {step} of {num_steps}, loss {smooth:.3f}, {rate_now:.0f} tokens/s")
            is_last = step + 1 == num_steps
            if is_last or (save_every and (step + 1) % save_every == 0):
                minutes = (time.monotonic() - started) / 60
                size = sum(p.numel() for p in model.parameters())
                threads = torch.get_num_threads()
                save(
                    model,
                    TrainingRecord(recipe, size, step + 1, num_tokens, num_documents, smooth, minutes, device, threads),
                )


def save_model(model: LlamaForCausalLM, tokenizer: Tokenizer, record: TrainingRecord, folder: Path) -> None:
    """Write bfloat16 weights, configuration, tokenizer and the training record."""
    folder.mkdir(parents=True, exist_ok=True)
    model = copy.deepcopy(model)
    torch.nn.Module.to(model, "cpu", torch.bfloat16)
    end, pad = tokenizer.token_to_id(TURN_END), tokenizer.token_to_id(PAD)
    generation: Any = GenerationConfig
    model.generation_config = generation(
        do_sample=True, temperature=1.0, top_p=0.95, max_new_tokens=128, eos_token_id=end, pad_token_id=pad
    )
    model.save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    (folder / "training.json").write_text(json.dumps(asdict(record), indent=2) + "\n")


def main(arguments: list[str] | None = None) -> None:
    """Read the command line and rebuild everything."""
    parser = argparse.ArgumentParser(prog="python -m server.demo.train", description="Rebuild the embedded model.")
    parser.add_argument("--out", type=Path, default=MODEL_DIR, help="folder of the model")
    parser.add_argument("--vectors", type=Path, help="folder of the vectors (default: vectors, beside the model's)")
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    parser.add_argument("--steps", type=int, default=Recipe.num_steps, help="training steps; they determine the result")
    parser.add_argument("--batch-tokens", type=int, default=Recipe.batch_tokens, help="positions per step")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--save-every", type=int, default=0, help="also save every N steps")
    parser.add_argument("--weights-only", action="store_true", help="skip vectors, figures and card")
    options = parser.parse_args(arguments)
    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    console = Console()
    recipe = Recipe(options.seed, options.steps, options.batch_tokens)
    console.print(f"tokenizer from {TOKENIZER_DOCUMENTS} documents of seed {recipe.seed}")
    tokenizer = train_tokenizer(recipe.seed, TOKENIZER_DOCUMENTS)

    def save(model: LlamaForCausalLM, record: TrainingRecord) -> None:
        save_model(model, tokenizer, record, options.out)
        console.print(f"step {record.num_steps_done}, {record.minutes:.1f} minutes: saved to {options.out}")

    fit(build_model(recipe, tokenizer), recipe, tokenizer, device, console, save, options.save_every)
    if not options.weights_only:
        vectors = options.vectors or options.out.parent / VECTORS_DIR.name
        make_vectors(options.out, vectors)
        calibrate_vectors(options.out, vectors)
        figures = measure(options.out, vectors, NUM_PROMPTS)
        print_figures(figures, console)
        save_figures(figures, options.out / "figures.json")
        write_card(options.out)


if __name__ == "__main__":
    main()
