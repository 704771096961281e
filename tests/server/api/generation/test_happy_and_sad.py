"""Real weights end to end: a happy-sad vector, put over REST, moves what TinyStories tells in step with its scale."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors.torch import save
from transformers import AutoModelForCausalLM, AutoTokenizer

from server.engine.engine import EngineSettings
from server.engine.model import load_model
from tests.reference import activations
from tests.server.api.serving import Server, serving
from tests.shared_files import shared

HAPPY = (
    "She was so happy and smiled",
    "They laughed and played with joy",
    "He was glad and had a great day",
    "What a fun and happy day! They smiled",
    "Everyone cheered and was very happy",
)
SAD = (
    "She was so sad and cried",
    "They cried and felt very sad",
    "He was upset and had a bad day",
    "What a sad and awful day! They cried",
    "Everyone was sad and very upset",
)
HAPPY_WORDS = re.compile(r"\b(happy|smil\w*|laugh\w*|joy\w*|glad|fun|love\w*|excited|proud|cheer\w*)\b", re.IGNORECASE)
SAD_WORDS = re.compile(
    r"\b(sad\w*|cr(?:y|ied|ying)|upset|scared|tears?|hurt|angry|afraid|lonely|sorry)\b", re.IGNORECASE
)
OPENINGS = (
    "Once upon a time, there was a little girl",
    "Tom went to the park",
    "One day, a dog",
    "The boy and his friend",
)
SCALES = (-0.5, -0.25, 0.0, 0.25, 0.5)
NUM_STORIES = 24


def mean_difference(folder: Path) -> torch.Tensor:
    """Mean activation of the last token after block 0, happy minus sad, by a plain model."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    def mean(texts: tuple[str, ...]) -> torch.Tensor:
        return torch.stack([activations(model, tokenizer(text).input_ids, "residual", 0)[-1] for text in texts]).mean(0)

    return mean(HAPPY) - mean(SAD)


def stories(server: Server) -> list[str]:
    """What TinyStories tells at each scale, all at once."""

    def told(scale: float, index: int) -> str:
        completion = server.sdk.completions.create(
            model="TinyStories-656K",
            prompt=OPENINGS[index],
            n=NUM_STORIES // len(OPENINGS),
            seed=index,
            temperature=0.8,
            max_tokens=150,
            extra_body={"steering": [{"vector": "happy", "scale": scale}], "ignore_eos": True},
        )
        assert len(completion.choices) == NUM_STORIES // len(OPENINGS)
        return " ".join(choice.text for choice in completion.choices)

    with ThreadPoolExecutor(len(SCALES) * len(OPENINGS)) as pool:
        asked = [[pool.submit(told, scale, index) for index in range(len(OPENINGS))] for scale in SCALES]
    return [" ".join(one.result() for one in own) for own in asked]


def test_counts_of_words_follow_the_scale(tmp_path: Path) -> None:
    folder = shared("models/TinyStories-656K")
    content = save({"residual.0": mean_difference(folder)})
    settings = EngineSettings(num_pages=2048, page_size=16, max_running=len(SCALES) * NUM_STORIES, max_batch_tokens=256)
    model, tokenizer = load_model(folder, device="cpu"), AutoTokenizer.from_pretrained(folder)
    with serving(tmp_path, model=model, tokenizer=tokenizer, engine_settings=settings) as server:
        assert server.http.put("/v1/steering/vectors/happy", content=content).status_code == 201
        counts = [(len(HAPPY_WORDS.findall(text)), len(SAD_WORDS.findall(text))) for text in stories(server)]
    happy, sad = zip(*counts, strict=True)
    print(f"\nscale {SCALES}: happy words {happy}, sad words {sad}")
    assert sorted(happy) == list(happy)
    assert sorted(sad, reverse=True) == list(sad)
    assert happy[0] < happy[2] < happy[-1]
    assert sad[0] > sad[2] > sad[-1]
