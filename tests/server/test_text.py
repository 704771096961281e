"""Prompts become the token ids that the tokenizer and the chat template mean."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from server.demo import MODEL_DIR
from server.errors import ContextLengthExceeded, InvalidRequest
from server.text import TextProcessor, TokenizerRefused, load_text
from tests.server.api.serving import byte_tokenizer
from tests.shared_files import shared

HELLO = [{"role": "user", "content": "hi"}]


def test_a_chat_is_rendered_and_encoded_without_more_special_tokens() -> None:
    text = TextProcessor(byte_tokenizer())
    assert text.render_chat(HELLO) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    token_ids = text.encode(text.render_chat(HELLO), add_special_tokens=False)
    assert [token_id for token_id in token_ids if text.table.is_special(token_id)] == [1, 2, 1]


def test_template_kwargs_reach_the_template() -> None:
    text = TextProcessor(byte_tokenizer())
    assert text.render_chat(HELLO, {"mood": "happily: "}).endswith("assistant\nhappily: ")


@pytest.mark.parametrize(
    "name", ["chat_template", "tokenize", "messages", "add_generation_prompt", "tools", "conversation"]
)
def test_template_kwargs_cannot_take_the_servers_place(name: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        TextProcessor(byte_tokenizer()).render_chat(HELLO, {name: "x"})
    assert caught.value.param == f"chat_template_kwargs.{name}"


def test_a_model_without_template_refuses_chats_unless_one_is_given(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest) as caught:
        TextProcessor(byte_tokenizer(chat_template=None)).render_chat(HELLO)
    assert caught.value.code == "no_chat_template"
    byte_tokenizer(chat_template=None).save_pretrained(tmp_path)
    template = tmp_path / "mine.jinja"
    template.write_text("{{ messages[0]['content'] }}!")
    assert load_text(tmp_path, chat_template=template).render_chat(HELLO) == "hi!"


def test_of_several_templates_the_default_one_renders() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = {"default": "{{ messages[0]['content'] }}!", "tool_use": "{{ tools }}"}
    assert TextProcessor(tokenizer).render_chat(HELLO) == "hi!"


def test_what_a_template_raises_is_the_clients_to_know() -> None:
    with pytest.raises(InvalidRequest, match="this word is forbidden") as caught:
        TextProcessor(byte_tokenizer()).render_chat([{"role": "user", "content": "forbidden"}])
    assert caught.value.code == "chat_template_error"


def test_templates_run_in_a_sandbox() -> None:
    template = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(InvalidRequest, match="unsafe"):
        TextProcessor(byte_tokenizer(), chat_template=template).render_chat(HELLO)


def test_prompts_get_the_tokenizers_own_special_tokens() -> None:
    text = load_text(shared("models/stories260K"))
    assert text.encode("Once")[0] == 1
    assert text.encode("Once", add_special_tokens=False)[0] != 1
    assert text.decode(text.encode("Once upon")) == "Once upon"
    assert not text.has_text([1])
    assert text.has_text(text.encode("Once"))


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2"])
@pytest.mark.parametrize("files", [(), ("tokenizer_config.json",), ("special_tokens_map.json",)])
def test_a_folder_without_a_vocabulary_is_refused(model_type: str, files: tuple[str, ...], tmp_path: Path) -> None:
    folder = shared("models/TinyStories-656K")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    for name in files:
        source = folder / name
        (tmp_path / name).write_text(source.read_text() if source.exists() else "{}")
    with pytest.raises(TokenizerRefused, match=r"has no (tokenizer|vocabulary): copy tokenizer\.json"):
        load_text(tmp_path)


def test_tokens_that_a_model_lacks_are_named() -> None:
    text = load_text(shared("models/stories260K"))
    assert text.tokens_beyond(512) == []
    assert len(text.tokens_beyond(509)) == 3


def test_a_missing_tokenizer_or_template_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(TokenizerRefused, match="tokenizer"):
        load_text(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(TokenizerRefused, match="cannot read"):
        load_text(tmp_path, chat_template=tmp_path / "missing.jinja")


class CountingText(TextProcessor):
    """Counts the characters that it encodes."""

    num_characters = 0

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        self.num_characters += len(text)
        return super().encode(text, add_special_tokens=add_special_tokens)


def test_what_is_encoded_is_bounded_by_the_room_there_is() -> None:
    text = CountingText(AutoTokenizer.from_pretrained(MODEL_DIR))
    choose, limit = random.Random(0), 40
    longest = max(map(len, AutoTokenizer.from_pretrained(MODEL_DIR).get_vocab()))
    num_refused = 0
    for alphabet in ("a", "ab ", "the music ", " ", "é漢\n"):
        for length in (0, 1, 30, 100, 700, 5000, 100_000):
            asked = "".join(choose.choices(alphabet, k=length))
            text.num_characters = 0
            try:
                found = text.encode_within(asked, limit, param="input.0", add_special_tokens=False)
            except ContextLengthExceeded as refused:
                error = refused
            else:
                assert found == text.encode(asked, add_special_tokens=False)
                continue
            num_refused += 1
            assert error.param == "input.0"
            assert str(length) in error.message
            assert text.num_characters <= 2 * limit * longest
            assert text.num_characters == 0 or length <= limit * longest
            assert len(text.encode(asked, add_special_tokens=False)) > limit
    assert num_refused >= 10
