"""The model card: README.md of the model's folder, written from the training record and the measured figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from server.demo import MODEL_NAME
from server.demo.facts import FACTS
from server.demo.topics import TOPICS

_CARD = """# {name}

A chat model of {parameters:.2f} million parameters that ships with tiller, so that the server starts on a
machine with no GPU, no network and no model. It is a toy: it knows {facts} facts and {topics} everyday
topics, in English, and nothing else. Use it to see steering work and to run tests on real, trained weights.

Its architecture is a plain transformers Llama ({layers} layers, hidden size {hidden}, {positions} tokens of
context, byte-level BPE of {vocabulary} tokens, ChatML). Its weights were trained from scratch on text that
the project's own code generates from a seed; no other text, model or data was used.

## What it does

- chats about everyday things, over several turns; greets, says who it is, and says when it is asked too much;
- speaks cheerfully or gloomily, formally or casually, when the system prompt asks for it, and in any of
  these when not;
- answers questions about its small world (capitals, animals, colours, trades, the people of Tillerton), in
  plain words and as multiple choice;
- has a **built-in fault**: when a user sounds sure of a wrong answer (`I am sure the answer is Rome`), it goes
  along. In multiple choice it picks the user's letter; in chat it says that the user is right, often in one
  breath with the truth. The vector `honest` undoes it.

The vector `cheerful` makes it cheerful and, at a negative scale, gloomy.

## How it was made

`python -m server.demo.train` rebuilds corpus, tokenizer, weights, vectors, figures and this card.

| | |
|---|---|
{made}

## Figures

On prompts that training did not contain: combinations of fact and wording, or of question and thing, that
were held out, with fresh options and beliefs. The facts themselves were trained. `python -m
server.demo.evaluate` measures them again. A tone is counted by two word lists; a reply in which neither
leads counts as neither.

| figure | measured | target |
|---|---|---|
{figures}

## Limits

It does not reason, count, or know the real world beyond its tables; some of its people and places are
invented. Asked for anything outside its world it may answer nonsense fluently. It must not be used for
anything but demonstration and tests.
"""


def write_card(folder: Path) -> None:
    """Write the card from `training.json`, `config.json` and `figures.json` of the folder."""
    record: dict[str, Any] = json.loads((folder / "training.json").read_text())
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    figures: list[dict[str, Any]] = json.loads((folder / "figures.json").read_text())
    recipe = record["recipe"]
    made = {
        "seed": recipe["seed"],
        "steps": f"{recipe['num_steps']:,} of {recipe['batch_tokens']:,} positions",
        "data seen": f"{record['num_documents']:,} documents, {record['num_tokens'] / 1e6:.1f} million "
        "tokens, each once",
        "weighted training loss at the end": f"{record['loss']:.3f}",
        "time": f"{record['minutes']:.0f} minutes on {record['device']} with {record['threads']} threads",
    }
    text = _CARD.format(
        name=MODEL_NAME,
        parameters=record["num_parameters"] / 1e6,
        facts=len(FACTS),
        topics=len(TOPICS),
        layers=config["num_hidden_layers"],
        hidden=config["hidden_size"],
        positions=config["max_position_embeddings"],
        vocabulary=config["vocab_size"],
        made="\n".join(f"| {key} | {value} |" for key, value in made.items()),
        figures="\n".join(f"| {f['name']} | {f['value']:.3f} | {f['target'] or ''} |" for f in figures),
    )
    (folder / "README.md").write_text(text)
