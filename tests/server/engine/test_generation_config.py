"""Of a model's generation config, everything that changes `generate` is applied, or said."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
import transformers

from server.api.generation.choices import sampling_of
from server.api.generation.wire import GenerationFields
from server.engine.generation_config import suppressed_tokens, unapplied_fields
from server.engine.model import prepare_model
from server.engine.request import EngineRequest, Generate
from tests.families import build
from tests.server.engine.driving import engine_of, prompt_of, run, tokens_of

PROMPT = prompt_of(9)


def configured(**fields: Any) -> Any:
    model = build("llama")
    model.generation_config = transformers.GenerationConfig(**fields)
    return model


def answered(model: Any, num_tokens: int = 12) -> list[int]:
    """A greedy answer with the model's own defaults, sampled as a request without fields is."""
    loaded = prepare_model(model)
    sampling = sampling_of(GenerationFields.model_validate({"temperature": 0}), loaded.info)
    engine = engine_of(loaded)
    tokens = tokens_of(run(engine, [EngineRequest("a", PROMPT, Generate(num_tokens, sampling))])["a"])
    engine.close()
    return tokens


def generated(model: Any, num_tokens: int = 12) -> list[int]:
    ids = torch.tensor([PROMPT])
    tokens: list[int] = model.generate(ids, max_new_tokens=num_tokens, do_sample=False)[0, len(PROMPT) :].tolist()
    return tokens


@pytest.mark.parametrize("field", ["suppress_tokens", "bad_words_ids", "min_new_tokens"])
def test_a_field_that_is_applied_gives_what_generate_gives(field: str) -> None:
    plain = generated(configured())
    if field == "min_new_tokens":
        fields: dict[str, Any] = {"eos_token_id": plain[1], "min_new_tokens": 5}
    elif field == "suppress_tokens":
        fields = {field: plain[:2]}
    else:
        fields = {field: [[plain[0]], [plain[1]]]}
    expected = generated(configured(**fields))
    assert answered(configured(**fields)) == expected
    assert expected != plain


def test_an_end_token_is_no_bad_word() -> None:
    config = transformers.GenerationConfig(bad_words_ids=[[4], [5]], suppress_tokens=[7, 1000])
    assert suppressed_tokens(config, {5}, 101) == {4, 7}
    assert suppressed_tokens(None, (), 101) == frozenset()


def test_no_bias_of_a_request_brings_a_suppressed_token_back() -> None:
    info = prepare_model(configured(suppress_tokens=[7])).info
    sampling = sampling_of(GenerationFields.model_validate({"logit_bias": {"7": 100, "8": 1}}), info)
    assert sampling.logit_bias == {7: -float("inf"), 8: 1.0}


def test_what_is_not_applied_is_said_by_name(caplog: pytest.LogCaptureFixture) -> None:
    config = {
        "no_repeat_ngram_size": 2,
        "forced_eos_token_id": 2,
        "bad_words_ids": [[3], [4, 5]],
        "guidance_scale": 1.0,
        "num_beams": 4,
    }
    with caplog.at_level(logging.WARNING):
        prepare_model(configured(**config))
    (said,) = [record.getMessage() for record in caplog.records if "generation config" in record.getMessage()]
    assert said.endswith("forced_eos_token_id=2, no_repeat_ngram_size=2, num_beams=4, bad_words_ids=[[4, 5]]")


def test_every_field_of_transformers_is_known() -> None:
    """A new field of `generate` has to be looked at: applied, said, or listed here because it changes no answer."""
    neutral = {
        "max_length", "early_stopping", "do_sample", "use_mtp", "use_cache", "cache_implementation", "cache_config",
        "max_cache_len", "length_penalty", "renormalize_logits", "remove_invalid_values", "num_return_sequences",
        "output_attentions", "output_hidden_states", "output_scores", "output_logits", "return_dict_in_generate",
        "pad_token_id", "bos_token_id", "eos_token_id", "encoder_no_repeat_ngram_size", "decoder_start_token_id",
        "is_assistant", "num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold",
        "prompt_lookup_num_tokens", "max_matching_ngram_size", "assistant_early_exit", "assistant_lookbehind",
        "target_lookbehind", "assistant_ensemble_weight", "speculation_type", "compile_config", "disable_compile",
        "continuous_batching_config", "low_memory", "prefill_chunk_size", "transformers_version",
    }  # fmt: skip
    applied = {"temperature", "top_p", "top_k", "min_p", "repetition_penalty", "suppress_tokens", "min_new_tokens"}
    fields = {name for name in vars(transformers.GenerationConfig()) if not name.startswith("_")}
    odd = transformers.GenerationConfig()
    for name in fields - neutral - applied - {"bad_words_ids"}:
        setattr(odd, name, "something")
    said = {field.partition("=")[0] for field in unapplied_fields(odd)}
    assert said == fields - neutral - applied - {"bad_words_ids"}
