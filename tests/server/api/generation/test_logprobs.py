"""Log-probabilities over HTTP equal a plain transformers forward pass to 1e-4: prompts and answers, steered and not.

The reference (`tests/reference.py`) is one full pass with plain hooks; names and bytes come from the tokenizer alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from server.demo import MODEL_DIR
from server.demo.heldout import quiz_items
from server.engine.engine import EngineSettings
from server.engine.model import load_model
from tests.reference import Steer, steered_logits
from tests.server.api.serving import Server, serving
from tests.shared_files import shared
from vectors.vector import SteeringVector

NUM_TOP = 20
STEP = 24
TOLERANCE = 1e-4
SAMPLED = {
    "temperature": 1.0,
    "seed": 3,
    "top_p": 0.9,
    "frequency_penalty": 0.7,
    "presence_penalty": -0.3,
    "logit_bias": {"300": 4.0, "310": -100.0},
    "extra_body": {"top_k": 50, "min_p": 0.001, "repetition_penalty": 1.3, "ignore_eos": True},
}
"""All that changes which token is drawn; none of it may change what is told."""
GREEDY: dict[str, Any] = {"temperature": 0, "extra_body": {"ignore_eos": True}}

PROMPT = quiz_items(1, 1, "held_out", "wrong")[0].prompt
"""A question of the embedded model's world, longer than what one step takes: it is read in chunks."""
CHAT_TEMPLATE = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
CASES = ("unsteered", "one", "several")


@dataclass(frozen=True)
class Weights:
    """A server of real weights, and the same weights for the reference."""

    server: Server
    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    steerings: dict[str, list[Steer]]

    def steering(self, name: str) -> list[dict[str, Any]]:
        """The wire's entries for a case: a vector a steer, named after its place in the case."""
        return [
            {
                "vector": f"{name}-{index}",
                "scale": steer.scale,
                "positions": steer.positions,
                "operation": steer.operation,
                "preserve_norm": steer.preserve_norm,
            }
            for index, steer in enumerate(self.steerings[name])
        ]

    def logprobs(self, name: str, tokens: Sequence[int], num_prompt: int) -> Tensor:
        """`[tokens, vocabulary]`: row i is about what follows token i."""
        return torch.log_softmax(steered_logits(self.model, tokens, self.steerings[name], num_prompt), -1)

    def whole_tokens(self) -> dict[str, int]:
        """Every token whose text is whole characters and no other token's, by its text."""
        texts = [str(self.tokenizer.decode([token])) for token in range(len(self.tokenizer))]
        return {text: token for token, text in enumerate(texts) if "\ufffd" not in text and texts.count(text) == 1}


def steerings_of(hidden_size: int, num_layers: int) -> dict[str, list[Steer]]:
    """The cases; random directions, strong enough to matter and weak enough to leave the model talking."""

    def direction(seed: int) -> Tensor:
        return torch.randn(hidden_size, generator=torch.Generator().manual_seed(seed)) * 0.3

    last = num_layers - 1
    return {
        "unsteered": [],
        "one": [Steer(direction(0), 0, scale=1.5)],
        "several": [
            Steer(direction(1), 0, scale=-1.0, positions="all"),
            Steer(direction(2), 0, scale=2.0, positions="prompt", preserve_norm=True),
            Steer(direction(3), last, "attention", positions="all", operation="ablate"),
            Steer(direction(4), last, "mlp", scale=0.7, operation="clamp"),
            Steer(direction(5), last, "post_attention_norm", scale=0.5, positions="all"),
        ],
    }


@pytest.fixture(scope="module", params=["tiller-demo", "TinyStories-656K"])
def weights(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Weights]:
    """The embedded model, and where it is at hand one that others trained; no step takes a whole prompt."""
    folder: Path = MODEL_DIR if request.param == "tiller-demo" else shared(f"models/{request.param}")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = tokenizer.chat_template or CHAT_TEMPLATE
    assert len(tokenizer(PROMPT).input_ids) > STEP
    steerings = steerings_of(model.config.hidden_size, model.config.num_hidden_layers)
    with serving(
        tmp_path_factory.mktemp("data"),
        model=load_model(folder, device="cpu", dtype="float32", model_id=request.param),
        tokenizer=tokenizer,
        engine_settings=EngineSettings(num_pages=400, page_size=8, max_running=16, max_batch_tokens=STEP),
    ) as server:
        for name, steers in steerings.items():
            for index, steer in enumerate(steers):
                one = SteeringVector({steer.layer: steer.direction}, site=steer.site)  # type: ignore[arg-type]
                server.store.put(f"{name}-{index}", one)
        yield Weights(server, model, tokenizer, steerings)


def check(row: Tensor, token: int, told: float, top: Sequence[float]) -> None:
    """One place: the token's own log-probability and the likeliest ones, best first."""
    assert told == pytest.approx(float(row[token]), abs=TOLERANCE)
    expected = row.topk(NUM_TOP).values
    torch.testing.assert_close(torch.tensor(top, dtype=row.dtype), expected, atol=TOLERANCE, rtol=0)


def check_names(row: Tensor, tops: dict[str, float], whole: dict[str, int]) -> None:
    """Each name carries the log-probability of the token that has this text."""
    named = {text: logprob for text, logprob in tops.items() if text in whole}
    assert named
    for text, logprob in named.items():
        assert logprob == pytest.approx(float(row[whole[text]]), abs=TOLERANCE), text


def ask(weights: Weights, ask_one: Callable[[str], Any]) -> list[tuple[str, Any]]:
    """The answers to every case, asked at once so that they share steps, and asked again of warm caches."""
    with ThreadPoolExecutor(len(CASES)) as pool:
        first = list(pool.map(ask_one, CASES))
        again = list(pool.map(ask_one, CASES))
    assert all(answer.usage.prompt_tokens_details.cached_tokens > 0 for answer in again)
    return list(zip(CASES * 2, first + again, strict=True))


def check_steered(weights: Weights, name: str, tokens: Sequence[int], rows: Tensor) -> None:
    """A case that steers changes what is told, or it would prove nothing."""
    changed = float((rows - weights.logprobs("unsteered", tokens, len(tokens))).abs().max())
    assert (changed > 0.05) == (name != "unsteered")


@pytest.mark.parametrize("options", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_completions_tell_what_a_plain_forward_pass_says(weights: Weights, options: dict[str, Any]) -> None:
    def complete(name: str) -> Any:
        extra = options["extra_body"] | {"steering": weights.steering(name), "return_token_ids": True}
        asked = {"prompt": PROMPT, "echo": True, "logprobs": NUM_TOP, "max_tokens": 12, **options, "extra_body": extra}
        return weights.server.sdk.completions.create(model=weights.server.engine.info.model_id, **asked)

    whole = weights.whole_tokens()
    for name, answer in ask(weights, complete):
        choice = answer.choices[0]
        tokens = [*choice.prompt_token_ids, *choice.token_ids]
        rows = weights.logprobs(name, tokens, len(choice.prompt_token_ids))
        check_steered(weights, name, tokens, rows)
        told = choice.logprobs
        assert (told.token_logprobs[0], told.top_logprobs[0]) == (None, None)
        entries = zip(tokens, told.token_logprobs, told.top_logprobs, strict=True)
        for row, (token, logprob, tops) in zip(rows, list(entries)[1:], strict=False):
            check(row, token, logprob, sorted(tops.values(), reverse=True)[:NUM_TOP])
            check_names(row, tops, whole)


@pytest.mark.parametrize("options", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_chats_tell_what_a_plain_forward_pass_says(weights: Weights, options: dict[str, Any]) -> None:
    def chat(name: str) -> Any:
        extra = options["extra_body"] | {"steering": weights.steering(name), "return_token_ids": True}
        asked = {"logprobs": True, "top_logprobs": NUM_TOP, "max_tokens": 12, **options, "extra_body": extra}
        messages: Any = [{"role": "user", "content": PROMPT}]
        return weights.server.sdk.chat.completions.create(
            model=weights.server.engine.info.model_id, messages=messages, **asked
        )

    whole = weights.whole_tokens()
    for name, answer in ask(weights, chat):
        choice = answer.choices[0]
        tokens = [*answer.prompt_token_ids, *choice.token_ids]
        rows = weights.logprobs(name, tokens, len(answer.prompt_token_ids))
        check_steered(weights, name, tokens, rows)
        for row, token, entry in zip(
            rows[len(answer.prompt_token_ids) - 1 : -1], choice.token_ids, choice.logprobs.content, strict=True
        ):
            check(row, token, entry.logprob, [top.logprob for top in entry.top_logprobs])
            check_names(
                row, {bytes(top.bytes).decode(errors="replace"): top.logprob for top in entry.top_logprobs}, whole
            )
