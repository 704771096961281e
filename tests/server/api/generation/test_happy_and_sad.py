"""Real weights end to end: a happy-sad vector, put over REST, moves what TinyStories tells in step with its scale."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
import torch
from safetensors.torch import save
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.reference import activations
from tests.server.cli.running import ServerProcess
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


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with ServerProcess(tmp_path_factory.mktemp("data"), shared("models/TinyStories-656K")) as server:
        yield server.wait_until_ready()


def mean_difference(folder: Path) -> torch.Tensor:
    """Mean activation of the last token after block 0, happy minus sad, by a plain model."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    def mean(texts: tuple[str, ...]) -> torch.Tensor:
        return torch.stack([activations(model, tokenizer(text).input_ids, "residual", 0)[-1] for text in texts]).mean(0)

    return mean(HAPPY) - mean(SAD)


def test_counts_of_words_follow_the_scale(url: str) -> None:
    content = save({"residual.0": mean_difference(shared("models/TinyStories-656K"))})
    assert httpx.put(f"{url}/v1/steering/vectors/happy", content=content).status_code == 201
    counts = []
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client:
        for scale in SCALES:
            stories = []
            for index, opening in enumerate(OPENINGS):
                completion = client.completions.create(
                    model="TinyStories-656K",
                    prompt=opening,
                    n=NUM_STORIES // len(OPENINGS),
                    seed=index,
                    temperature=0.8,
                    max_tokens=150,
                    extra_body={"steering": [{"vector": "happy", "scale": scale}], "ignore_eos": True},
                )
                stories += [choice.text for choice in completion.choices]
            assert len(stories) == NUM_STORIES
            text = " ".join(stories)
            counts.append((len(HAPPY_WORDS.findall(text)), len(SAD_WORDS.findall(text))))
    happy, sad = zip(*counts, strict=True)
    print(f"\nscale {SCALES}: happy words {happy}, sad words {sad}")
    assert sorted(happy) == list(happy)
    assert sorted(sad, reverse=True) == list(sad)
    assert happy[0] < happy[2] < happy[-1]
    assert sad[0] > sad[2] > sad[-1]
