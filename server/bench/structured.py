"""The cost of constrained decoding: tokens per second of a batch with and without a JSON schema, alternating.

`python -m server.bench.structured` measures the embedded model and, if `--tokenizer` names a folder with a vocabulary
of some 49 000 tokens, a Llama of 135 million random bfloat16 weights, whose steps take as long as those of a small real
model. Both runs generate the same number of tokens, at temperature 1; answers under the schema never end.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from server.answers.compiler import GrammarCompiler
from server.answers.grammar_source import json_answer
from server.demo import MODEL_DIR
from server.engine.engine import BatchingEngine, EngineSettings
from server.engine.grammar import Grammar
from server.engine.model import LoadedModel, load_model, prepare_model
from server.engine.request import EngineRequest, Generate, SamplingParams, TokenOutput

BATCH = 8
_PROMPT_TOKENS = 32
_END = 2
_out = Console(highlight=False)

SCHEMA: dict[str, Any] = {
    "type": "array",
    "minItems": 1000,
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 30},
            "age": {"type": "integer", "minimum": 0, "maximum": 120},
            "mood": {"enum": ["happy", "sad", "calm", "angry"]},
            "tags": {"type": "array", "items": {"type": "string", "pattern": "^[a-z]{3,12}$"}, "maxItems": 4},
            "remark": {"type": ["string", "null"], "maxLength": 120},
        },
        "required": ["name", "age", "mood", "tags"],
    },
}
"""What people ask for: objects with texts, numbers, choices and lists; so many that no answer is complete."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A model to measure."""

    name: str
    model: LoadedModel
    tokenizer: PreTrainedTokenizerBase

    def grammar(self) -> Grammar:
        """`SCHEMA` for this model's tokens."""
        compiler = GrammarCompiler(self.tokenizer, self.model.info.vocab_size, {_END})
        return compiler.compile(json_answer(SCHEMA))


def embedded() -> Subject:
    """The embedded model."""
    return Subject("embedded", load_model(MODEL_DIR, device="cpu"), AutoTokenizer.from_pretrained(MODEL_DIR))


def random_llama(tokenizer: PreTrainedTokenizerBase) -> Subject:
    """135 million random weights in bfloat16, over the tokenizer's vocabulary."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=49152,
        tie_word_embeddings=True,
        max_position_embeddings=2048,
        bos_token_id=0,
        eos_token_id=_END,
        pad_token_id=0,
    )
    module = LlamaForCausalLM(config).bfloat16().train(False)
    return Subject("random llama 135M bfloat16", prepare_model(module, model_id="random"), tokenizer)


@dataclass(frozen=True, slots=True)
class Pace:
    """Tokens per second of the clock, and of this process's processor time (which other programs take nothing of)."""

    by_clock: float
    by_processor: float


def pace(engine: BatchingEngine, grammar: Grammar | None, num_tokens: int, seed: int) -> Pace:
    """The pace of `BATCH` answers of `num_tokens` tokens from their second token on: decoding only."""
    events: list[TokenOutput] = []
    generator = torch.Generator().manual_seed(seed)
    for number in range(BATCH):
        prompt = tuple(torch.randint(100, 2000, (_PROMPT_TOKENS,), generator=generator).tolist())
        sampling = SamplingParams(temperature=1.0, seed=BATCH * seed + number, ignore_eos=True)
        request = EngineRequest(str(number), prompt, Generate(num_tokens, sampling, grammar=grammar))
        engine.submit(request, events.append)
    while len(events) < BATCH:
        engine.step()
    num_before = len(events)
    clock, processor = time.perf_counter(), time.process_time()
    while engine.step():
        pass
    seconds, processor_seconds = time.perf_counter() - clock, time.process_time() - processor
    assert len(events) == BATCH * num_tokens, "an answer ended early"
    num_new = len(events) - num_before
    return Pace(num_new / seconds, num_new / processor_seconds)


def measured(subject: Subject, num_rounds: int, num_tokens: int) -> dict[str, Any]:
    """Ratios first: one a round, whose two turns ran one after the other."""
    grammar = subject.grammar()
    pages = BATCH * -(-(_PROMPT_TOKENS + num_tokens) // 16)
    engine = BatchingEngine(subject.model, EngineSettings(num_pages=pages, max_running=BATCH, prefix_cache=False))
    pace(engine, None, 8, 0)
    pace(engine, grammar, 8, 0)
    free: list[Pace] = []
    bound: list[Pace] = []
    for number in range(1, num_rounds + 1):
        turns: list[tuple[list[Pace], Grammar | None]] = [(free, None), (bound, grammar)]
        for paces, constraint in turns if number % 2 else reversed(turns):
            paces.append(pace(engine, constraint, num_tokens, number))
    engine.close()
    pairs = list(zip(bound, free, strict=True))
    return {
        "kept_pace": _spread([with_schema.by_clock / without.by_clock for with_schema, without in pairs]),
        "kept_pace_by_processor_time": _spread(
            [with_schema.by_processor / without.by_processor for with_schema, without in pairs]
        ),
        "tokens_per_second_without": _spread([without.by_clock for without in free]),
        "tokens_per_second_with_schema": _spread([with_schema.by_clock for with_schema in bound]),
        "batch": BATCH,
        "threads": torch.get_num_threads(),
    }


def _spread(values: Sequence[float]) -> dict[str, Any]:
    return {
        "median": statistics.median(values),
        "lowest": min(values),
        "highest": max(values),
        "each": [round(value, 3) for value in values],
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m server.bench.structured", description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tokens", type=int, default=128, help="tokens of each answer")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="number of threads")
    parser.add_argument(
        "--tokenizer",
        metavar="FOLDER",
        help="tokenizer folder of the second model; without it only one model is measured",
    )
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    found = {}
    subjects = [embedded()]
    if options.tokenizer is not None:
        subjects.append(random_llama(AutoTokenizer.from_pretrained(options.tokenizer)))
    for subject in subjects:
        found[subject.name] = measured(subject, options.rounds, options.tokens)
    _out.print_json(json.dumps(found))


if __name__ == "__main__":
    main()
