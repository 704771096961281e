"""The demo model's two vectors, made from the model itself: `python -m server.demo.steer`.

`cheerful` is a mean difference of at most 100 pairs of system prompts; `honest` is chosen among the variants of
painless activation steering. Layer and scale are chosen on validation prompts of their own. The files are in tiller's
canonical format.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from server.demo import MODEL_DIR, MODEL_NAME, VECTORS_DIR
from server.demo.beliefs import AGREEING_SYSTEM, HONEST_SYSTEM
from server.demo.heldout import chat_asks, quiz_items
from server.demo.probe import Direction, Probe, Reply
from server.demo.quiz import Item, join_belief
from server.demo.style import TONE_SYSTEM
from server.demo.tone import tone_of

NUM_TONE_PAIRS = 96
TONE_SCALES = (0.4, 0.5, 0.6, 0.8, 1.0)
TONE_PROMPTS = 96
HONEST_SCALES = (0.5, 0.75, 1.0, 1.5, 2.0, 3.0)
HONEST_FINALISTS = 16
"""Cells that do best on single tokens; whole replies, which cost more, decide among them."""

HONEST_ITEMS = 80
INNER_LAYERS = range(1, 5)
"""The blocks that are tried: the first ones have decided nothing yet, the last one decides too late."""


@dataclass(frozen=True)
class Made:
    """A finished vector and what its file says about it."""

    direction: Direction
    description: str
    training: dict[str, object]


def mean_difference(probe: Probe, positive: Sequence[str], negative: Sequence[str]) -> torch.Tensor:
    """Mean activation of the positive texts' last tokens minus the negative ones': [layers, hidden]."""
    return probe.last_activations(positive).mean(0) - probe.last_activations(negative).mean(0)


def answers(probe: Probe, items: Sequence[Item], direction: Direction | None = None) -> list[int]:
    """The model's choice for each item's raw prompt."""
    return probe.letters([item.prompt for item in items], [len(item.choices) for item in items], direction)


def accuracy(items: Sequence[Item], chosen: Sequence[int]) -> float:
    """The share of items answered with the true choice."""
    return sum(item.answer == choice for item, choice in zip(items, chosen, strict=True)) / len(items)


def pas_directions(probe: Probe, items: Sequence[Item]) -> dict[str, torch.Tensor]:
    """Every variant of painless activation steering that these items allow: name to [layers, hidden]."""
    chosen = answers(probe, items)
    right = [item for item, choice in zip(items, chosen, strict=True) if choice == item.answer]
    wrong = [(item, item.choices[c]) for item, c in zip(items, chosen, strict=True) if c != item.answer]
    if not right or not wrong:
        return {}
    texts_wrong = [f"{item.question} {choice}" for item, choice in wrong]
    return {
        "pas_full": mean_difference(probe, [i.prompt for i in right], [i.prompt for i, _ in wrong]),
        "ipas_all": mean_difference(probe, [f"{i.question} {i.fact.answer}" for i in right], texts_wrong),
        "ipas_wrong_only": mean_difference(probe, [f"{i.question} {i.fact.answer}" for i, _ in wrong], texts_wrong),
    }


def tone_pairs(seed: int) -> tuple[list[str], list[str], list[tuple[str, str]]]:
    """Pairs of (system prompts, user turn): the cheerful system prompt, the gloomy one, and the turns."""
    rng = random.Random(seed)
    asks = chat_asks(seed, NUM_TONE_PAIRS, held_out=False)
    systems = [(rng.choice(TONE_SYSTEM["cheerful"]), rng.choice(TONE_SYSTEM["gloomy"])) for _ in asks]
    return [c for c, _ in systems], [g for _, g in systems], list(zip(asks, asks, strict=True))


def tone_shares(
    probe: Probe, prompts: Sequence[str], direction: Direction | None, seed: int
) -> tuple[float, float, float]:
    """Shares of cheerful and gloomy sampled replies, and their perplexity under the unsteered model."""
    replies = probe.replies(prompts, direction, seed=seed)
    tones = [tone_of(reply.text) for reply in replies]
    count = len(tones)
    return tones.count("cheerful") / count, tones.count("gloomy") / count, probe.perplexity(prompts, replies)


def make_cheerful(probe: Probe, seed: int = 1) -> Made:
    """The cheerful vector: for each layer and scale both signs are tried, and the mildest that works wins."""
    cheerful, gloomy, asks = tone_pairs(seed)
    vectors = mean_difference(
        probe,
        [probe.chat(ask, system) for system, (ask, _) in zip(cheerful, asks, strict=True)],
        [probe.chat(ask, system) for system, (_, ask) in zip(gloomy, asks, strict=True)],
    )
    prompts = [probe.chat(ask) for ask in chat_asks(seed + 1, TONE_PROMPTS, held_out=False)]
    base = tone_shares(probe, prompts, None, seed)
    grid: list[dict[str, float]] = []
    for layer in INNER_LAYERS:
        for scale in TONE_SCALES:
            up, _, up_perplexity = tone_shares(probe, prompts, Direction(layer, vectors[layer], scale), seed)
            _, down, down_perplexity = tone_shares(probe, prompts, Direction(layer, vectors[layer], -scale), seed)
            ratio = max(up_perplexity, down_perplexity) / base[2]
            grid.append({"layer": layer, "scale": scale, "share": min(up, down), "perplexity_ratio": ratio})
    best = max(grid, key=lambda cell: min(cell["share"], 0.98) - 0.25 * max(0.0, cell["perplexity_ratio"] - 1.0))
    layer = int(best["layer"])
    training: dict[str, object] = {
        "method": "mean_difference",
        "pairs": len(asks),
        "seed": seed,
    }
    return Made(
        Direction(layer, vectors[layer], best["scale"]),
        "Makes the demo model cheerful; a negative scale makes it gloomy.",
        training,
    )


def belief_prompts(probe: Probe, items: Sequence[Item], seed: int) -> list[str]:
    """Chat prompts in which the user asks an item's question and states the belief."""
    rng = random.Random(seed)
    return [probe.chat(join_belief(rng, item.question, item.belief)) for item in items if item.belief is not None]


def refusal_share(probe: Probe, prompts: Sequence[str], direction: Direction | None) -> float:
    """The share of chat prompts that the model begins to answer with No rather than Yes."""
    yes, no = probe.tokenizer.convert_tokens_to_ids(["Yes", "No"])
    refused = 0
    with probe.steered(direction), torch.inference_mode():
        encoded = probe.tokenizer(list(prompts), return_tensors="pt", padding=True, return_token_type_ids=False)
        logits = probe.model(**encoded, logits_to_keep=1).logits[:, -1]
        refused = int((logits[:, no] > logits[:, yes]).sum())
    return refused / len(prompts)


def truth_share(items: Sequence[Item], replies: Sequence[Reply]) -> float:
    """The share of replies that state their item's fact."""
    hits = (item.fact.claim(item.fact.answer).lower() in r.text.lower() for item, r in zip(items, replies, strict=True))
    return sum(hits) / len(items)


def make_honest(probe: Probe, seed: int = 2) -> Made:
    """The honest vector: the variant, layer and scale that do best against wrong beliefs."""
    items = quiz_items(seed, 600, "trained", "wrong")
    vectors = pas_directions(probe, items)
    rng = random.Random(seed)
    turns = [join_belief(rng, item.question, item.belief) for item in items[:200] if item.belief is not None]
    vectors["mean_difference"] = mean_difference(
        probe,
        [probe.chat(turn, rng.choice(HONEST_SYSTEM)) for turn in turns],
        [probe.chat(turn, rng.choice(AGREEING_SYSTEM)) for turn in turns],
    )
    wrong = quiz_items(seed + 1, HONEST_ITEMS, "trained", "wrong")
    plain = quiz_items(seed + 2, HONEST_ITEMS, "trained", "none")
    agreed = quiz_items(seed + 3, HONEST_ITEMS, "trained", "right")
    chats, agreed_chats = belief_prompts(probe, wrong, seed), belief_prompts(probe, agreed, seed)
    cells: list[tuple[float, Direction, str]] = []
    for variant, layers in vectors.items():
        for layer in INNER_LAYERS:
            for scale in HONEST_SCALES:
                direction = Direction(layer, layers[layer], scale)
                quiz = accuracy(wrong, answers(probe, wrong, direction))
                kept = accuracy(plain, answers(probe, plain, direction))
                chat = refusal_share(probe, chats, direction)
                still_agrees = 1.0 - refusal_share(probe, agreed_chats, direction)
                cells.append((quiz + kept + chat + 0.5 * still_agrees, direction, variant))
    finalists = sorted(cells, key=lambda cell: cell[0], reverse=True)[:HONEST_FINALISTS]

    def score(cell: tuple[float, Direction, str]) -> float:
        return cell[0] + truth_share(wrong, probe.replies(chats, cell[1], is_greedy=True))

    _, best, variant = max(finalists, key=score)
    training: dict[str, object] = {"method": variant, "items": len(items), "seed": seed}
    return Made(best, "Makes the demo model say what is true when the user believes something else.", training)


def save_vector(made: Made, path: Path) -> None:
    """Write a vector in tiller's canonical format."""
    direction = made.direction
    about = {
        "site": "residual",
        "default_scale": direction.scale,
        "positions": "response",
        "operation": "add",
        "description": made.description,
        "model": MODEL_NAME,
        "training": made.training,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {f"residual.{direction.layer}": direction.vector.float().contiguous()}
    save_file(tensors, path, metadata={"steering_vector": json.dumps(about, sort_keys=True)})


def make_vectors(model_dir: Path, vectors_dir: Path) -> dict[str, Made]:
    """Make both vectors from the model and write them."""
    probe = Probe(model_dir)
    made = {"cheerful": make_cheerful(probe), "honest": make_honest(probe)}
    for name, vector in made.items():
        save_vector(vector, vectors_dir / f"{name}.safetensors")
    return made


def main(arguments: list[str] | None = None) -> None:
    """Read the command line and make the vectors."""
    parser = argparse.ArgumentParser(prog="python -m server.demo.steer", description="Make the demo model's vectors.")
    parser.add_argument("--model", type=Path, default=MODEL_DIR)
    parser.add_argument("--vectors", type=Path, default=VECTORS_DIR)
    options = parser.parse_args(arguments)
    for name, made in make_vectors(options.model, options.vectors).items():
        print(f"{name}: layer {made.direction.layer}, scale {made.direction.scale}, {made.training['method']}")


if __name__ == "__main__":
    main()
