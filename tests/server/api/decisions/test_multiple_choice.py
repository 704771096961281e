"""Multiple-choice prompts and probabilities, with the embedded model's tokenizer and with awkward ones."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from server.api.decisions.multiple_choice import Interview, Question, labels_for, probabilities_of
from server.demo import MODEL_DIR
from server.errors import InvalidRequest
from server.text import TextProcessor, load_text
from tests.server.api.serving import CONTEXT, byte_tokenizer
from vectors.data.items import Message

QUESTION = Question("Is it late?", ("yes", "no", "unsure"))
SAID = [Message("user", "The parcel came late.")]


def merging_text(*merges: tuple[str, str]) -> TextProcessor:
    """A byte-level tokenizer without word borders that merges just these pairs."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    symbols = [*alphabet, *("".join(merge) for merge in merges)]
    backend = Tokenizer(models.BPE({symbol: number for number, symbol in enumerate(symbols)}, list(merges)))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return TextProcessor(PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False))


@pytest.mark.parametrize("count", [2, 26, 27, 100, 255])
def test_no_label_begins_another(count: int) -> None:
    labels = labels_for(count)
    assert len(set(labels)) == count
    assert not any(longer.startswith(label) for label, longer in pairwise(sorted(labels)))
    assert labels[0] == ("A" if count <= 26 else "1".zfill(len(str(count))))


def test_the_question_is_worded_as_in_training() -> None:
    given, reverse = QUESTION.orders
    assert QUESTION.text(given) == "Is it late?\nA: yes\nB: no\nC: unsure\nRespond with a single letter.\nAnswer:"
    assert QUESTION.text(reverse) == "Is it late?\nA: unsure\nB: no\nC: yes\nRespond with a single letter.\nAnswer:"


def test_prompts_are_the_rendered_chat_and_begin_alike() -> None:
    text = load_text(MODEL_DIR)
    interview = Interview(text, SAID, CONTEXT)
    prompts = [interview.prompt(QUESTION, order) for order in QUESTION.orders]
    for prompt, order in zip(prompts, QUESTION.orders, strict=True):
        whole = f"<|im_start|>user\nThe parcel came late.\n\n{QUESTION.text(order)}<|im_end|>\n<|im_start|>assistant\n"
        assert list(prompt) == text.encode(whole, add_special_tokens=False)
    shared = text.encode("<|im_start|>user\nThe parcel came late.\n\n", add_special_tokens=False)
    assert all(list(prompt[: len(shared)]) == shared for prompt in prompts)
    assert [len(tokens) for spelled in interview.label_tokens(3) for tokens in spelled] == [1] * 6


def test_a_text_that_is_no_sum_of_its_parts_is_encoded_whole() -> None:
    text = merging_text(("Ċ", "I"))
    prompt = Interview(text, SAID, CONTEXT).prompt(QUESTION, (0, 1, 2))
    whole = f"The parcel came late.\n\n{QUESTION.text((0, 1, 2))}"
    assert list(prompt) == text.encode(whole)
    assert len(prompt) == len(whole) - 1


def test_a_label_that_melts_into_the_prompt_is_taken_as_it_stands_alone() -> None:
    text = merging_text((":", "Ġ"))
    (alone, spaced), *_ = Interview(text, SAID, CONTEXT).label_tokens(2)
    assert (list(alone), list(spaced)) == (text.encode("A"), text.encode(" A"))


def test_a_template_that_refuses_is_the_inputs_fault() -> None:
    text = TextProcessor(byte_tokenizer("{{ raise_exception('never') }}"))
    with pytest.raises(InvalidRequest, match="never") as caught:
        Interview(text, SAID, CONTEXT)
    assert (caught.value.code, caught.value.param) == ("chat_template_error", "input")


@pytest.mark.parametrize("template", ["{{ messages[-1]['content'] * 2 }}", "silence"])
def test_a_template_that_hides_or_repeats_the_question_is_refused(template: str) -> None:
    with pytest.raises(InvalidRequest, match="last message exactly once"):
        Interview(TextProcessor(byte_tokenizer(template)), SAID, CONTEXT)


def test_thinking_is_off_unless_asked_for() -> None:
    template = "{{ messages[-1]['content'] }}{% if enable_thinking is false %}<no think>{% endif %}"
    text = TextProcessor(byte_tokenizer(template))
    silent, thoughtful = Interview(text, SAID, CONTEXT), Interview(text, SAID, CONTEXT, {"enable_thinking": True})
    assert text.decode(silent.prompt(QUESTION, (0, 1, 2))).endswith("Answer:<no think>")
    assert text.decode(thoughtful.prompt(QUESTION, (0, 1, 2))).endswith("Answer:")


def test_a_bias_for_a_letter_cancels_between_two_options() -> None:
    for bias in (0.0, 2.0, -5.0):
        given = [[-1.0 + bias], [-2.0]]
        reverse = [[-2.0 + bias], [-1.0]]
        yes, no = probabilities_of([given, reverse])
        assert (yes, no) == (pytest.approx(1 / (1 + math.exp(-1))), pytest.approx(1 / (1 + math.exp(1))))


def test_spellings_add_up() -> None:
    third, half = math.log(1 / 3), math.log(1 / 2)
    found = probabilities_of([[[third, third], [third]], [[half], [half, -math.inf]]])
    assert found == pytest.approx(np.array([math.sqrt(2), 1.0]) / (math.sqrt(2) + 1))
