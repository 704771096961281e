"""Measures a model's typical norms at the start of a server, on a small text, and keeps them in the data folder.

The text is read as the model meets it: as answers in a chat, if the model has a chat template. A restart with the same
weights and precision measures nothing.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from pathlib import Path

import torch

from server.engine.protocol import Engine
from server.engine.queries import capture
from server.engine.request import Capture
from server.errors import InvalidRequest
from server.steering.norms import TypicalNorms
from server.text import TextProcessor
from vectors.durable import PRIVATE_FILE, PRIVATE_FOLDER, make_folder, write_file
from vectors.vocabulary import SITES, Place

FOLDER = "norms"
"""The folder of the kept norms in the data folder: one file for each model and precision."""

MAX_TOKENS = 96
"""Tokens of a text that are read at most, which bounds the activations that are held at a time."""

POSITIONS_AT_ONCE = 64
"""Tokens captured at a time: as many as every engine can."""

MAX_SECONDS = 10.0
"""After this long, no further text is begun: a large model on a slow machine is measured on fewer."""

TEXTS = (
    (
        "What should I look at before I buy a used bicycle?",
        "Begin with the frame. Look for cracks near the joints and for paint that has been renewed in one place only. "
        "Spin both wheels and watch whether they run straight between the brakes. Then ride it: the gears should "
        "change without a second push, and the brakes should stop you on a slope. Ask how old the chain is.",
    ),
    (
        "Why does bread rise?",
        "Yeast eats the sugar in the dough and gives off carbon dioxide. The gluten of the flour forms a net that "
        "holds the gas, so the dough grows. In the oven the bubbles expand once more until the crust sets. A dough "
        "that rests for too long falls again, because the net tears before it is baked.",
    ),
    (
        "Write three sentences about the sea in winter.",
        "The harbour is empty except for two fishing boats that nobody has painted since spring. Far out, the water "
        "and the sky have the same grey, and only the gulls show where one ends. When the wind turns to the north, the "
        "old people in the village close their shutters and talk about the year when the ice came.",
    ),
    (
        "How do I find the larger of two numbers in Python?",
        "Use the function max: `max(3, 7)` gives 7. It also takes a list, as in `max([2, 9, 4])`, and raises a "
        "ValueError if the list is empty. If you want the larger by some other measure, pass a key: "
        "`max(words, key=len)` gives the longest word, and the first one if several are equally long.",
    ),
)
"""Questions with answers, written for this purpose."""

_log = logging.getLogger(__name__)


def typical_norms(engine: Engine, text: TextProcessor, data_dir: Path) -> TypicalNorms:
    """The norms of the engine's model at all of its places: those kept in `data_dir`, or measured now and kept there.

    A disk that refuses them is no reason not to serve. Raises what `measure_norms` raises.
    """
    info = engine.info
    path = None
    if info.fingerprint:
        prompts = repr(_prompts(text))
        key = hashlib.sha256(f"{info.fingerprint} {info.dtype} {prompts}".encode()).hexdigest()
        path = data_dir / FOLDER / f"{key[:32]}.json"
        if (kept := _read(path, engine)) is not None:
            return kept
    norms = measure_norms(engine, text)
    if path is not None:
        try:
            make_folder(path.parent, mode=PRIVATE_FOLDER)
            write_file(path, json.dumps(norms.to_json(), indent=1).encode(), mode=PRIVATE_FILE)
        except OSError as error:
            _log.warning("the typical norms were not kept: %s", error)
    return norms


def measure_norms(engine: Engine, text: TextProcessor) -> TypicalNorms:
    """The mean ‖h‖ over the tokens of `TEXTS`, each but its first one, at every site and layer.

    Norms are computed in float64 from float32 activations. Raises what `Engine.submit` raises, and `WorkFailed`.
    """
    info = engine.info
    sites = [site for site in SITES if site in info.sites]
    sums: dict[Place, float] = {(site, layer): 0.0 for site in sites for layer in range(info.num_layers)}
    num_tokens = 0
    deadline = time.monotonic() + MAX_SECONDS
    for prompt in _prompts(text):
        prompt = prompt[: min(MAX_TOKENS, info.max_model_len)]
        if len(prompt) < 2:
            continue
        for site in sites:  # one at a time, so that little is held
            for first in range(1, len(prompt), POSITIONS_AT_ONCE):
                positions = tuple(range(first, min(first + POSITIONS_AT_ONCE, len(prompt))))
                work = Capture(tuple(range(info.num_layers)), (site,), positions)
                for place, found in capture(engine, prompt, work).result().items():
                    sums[place] += float(torch.linalg.vector_norm(found, dim=-1, dtype=torch.float64).sum())
        num_tokens += len(prompt) - 1
        if time.monotonic() > deadline:
            _log.info("the typical norms are those of %d tokens, because this model takes long to read", num_tokens)
            break
    known = {place: total / num_tokens for place, total in sums.items() if total > 0}
    return TypicalNorms(known, num_tokens)


def _prompts(text: TextProcessor) -> list[tuple[int, ...]]:
    return [_prompt(text, question, answer) for question, answer in TEXTS]


def _prompt(text: TextProcessor, question: str, answer: str) -> tuple[int, ...]:
    """A question and its answer as a chat, or as plain text without a chat template, or with one that refuses it."""
    if text.has_chat_template:
        try:
            begun = text.render_chat([{"role": "user", "content": question}])
            return tuple(text.encode(begun + answer, add_special_tokens=False))
        except InvalidRequest as error:
            _log.debug("the typical norms are measured on plain text: %s", error)
    return tuple(text.encode(f"{question}\n\n{answer}"))


def _read(path: Path, engine: Engine) -> TypicalNorms | None:
    """The kept norms; None if there are none for this model, or they are damaged."""
    try:
        found = TypicalNorms.from_json(json.loads(path.read_bytes()))
    except (OSError, ValueError, RecursionError):
        return None
    fits = all(site in engine.info.sites and layer < engine.info.num_layers for site, layer in found.means)
    return found if fits else None
