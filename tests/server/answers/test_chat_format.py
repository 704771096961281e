"""What is read off chat templates in the styles that models have, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from transformers import AutoTokenizer
from transformers.utils.chat_parsing import parse_response

from server.answers.call_shape import CallShape
from server.answers.regions import opened_field
from server.errors import InvalidRequest
from server.text import TextProcessor, TokenizerRefused, load_text
from tests.server.answers import chat_templates as styles
from tests.server.answers.chat_templates import tokenizer_with
from tests.shared_files import shared

QUESTION: dict[str, Any] = {"role": "user", "content": "hello"}
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}

HERMES_SHAPE = CallShape('<tool_call>\n{"name": "', '", "arguments": ', "}\n</tool_call>", "\n")


def text_with(chat_template: str | None, response_template: dict[str, Any] | None = None) -> TextProcessor:
    return TextProcessor(tokenizer_with(chat_template, response_template))


def written(shape: CallShape, *calls: tuple[str, dict[str, Any]]) -> str:
    """Calls as the shape writes them."""
    return shape.separator.join(
        f"{shape.opening}{name}{shape.middle}{json.dumps(arguments)}{shape.closing}" for name, arguments in calls
    )


@pytest.mark.parametrize(
    ("template", "shape"),
    [
        (styles.HERMES, HERMES_SHAPE),
        (styles.THINKING, HERMES_SHAPE),
        (styles.THINKING_SWITCH, HERMES_SHAPE),
        (styles.TIGHT, CallShape('<call>{"name": "', '", "parameters": ', "}</call>", "")),
    ],
)
def test_json_calls_between_markers_are_found(template: str, shape: CallShape) -> None:
    found = text_with(template).chat_format
    assert (found.calls, found.takes_tools, found.reads_calls) == (shape, True, True)


@pytest.mark.parametrize("template", [styles.HERMES, styles.TIGHT, styles.THINKING])
@pytest.mark.parametrize("content", ["", "let me see"])
def test_what_the_template_writes_is_read_and_dictated_alike(template: str, content: str) -> None:
    text = text_with(template)
    found = text.chat_format
    assert found.calls is not None
    calls: list[tuple[str, dict[str, Any]]] = [("look", {"at": 'a "b"'}), ("go", {"to": {"x": [1, 2]}})]
    made = [{"type": "function", "function": {"name": name, "arguments": arguments}} for name, arguments in calls]
    asked, answered = [QUESTION], [QUESTION, {"role": "assistant", "content": content, "tool_calls": made}]
    prompt = text.render_chat(asked, tools=[TOOL]).removesuffix("<think>\n")
    answer = text.render_chat(answered, tools=[TOOL], add_generation_prompt=False).removeprefix(prompt)
    assert written(found.calls, *calls) in answer
    reading = found.reading(with_calls=True).template
    assert reading is not None
    message = parse_response(answer, reading, prefix=prompt)
    assert [(call["name"], call.get("arguments", call.get("parameters"))) for call in message["tool_calls"]] == calls


@pytest.mark.parametrize(
    ("template", "takes_tools"), [(styles.PLAIN, False), (styles.REFUSES_TOOLS, False), (styles.XML_PARAMETERS, True)]
)
def test_what_cannot_be_read_off_a_template_is_not_guessed(template: str, takes_tools: bool) -> None:
    found = text_with(template).chat_format
    assert (found.calls, found.reads_calls, found.takes_tools) == (None, False, takes_tools)
    assert found.reading(with_calls=True).template is None


def test_without_a_template_there_are_no_parts() -> None:
    found = text_with(None).chat_format
    assert (found.spec, found.calls, found.takes_tools, found.has_reasoning) == (None, None, False, False)


@pytest.mark.parametrize(
    "template", [styles.THINKING, styles.THINKING_SWITCH, styles.THOUGHTS_TAKEN_OUT, styles.OTHER_END]
)
def test_thinking_is_found_in_the_templates_source(template: str) -> None:
    found = text_with(template).chat_format
    assert found.has_reasoning
    assert found.reasoning_markers == ("<think>", "</think>")
    assert not text_with(styles.HERMES).chat_format.has_reasoning


@pytest.mark.parametrize(
    ("template", "kwargs", "opened"),
    [
        (styles.THINKING, {}, "reasoning"),
        (styles.OTHER_END, {}, "reasoning"),
        (styles.THINKING_SWITCH, {}, None),
        (styles.THINKING_SWITCH, {"enable_thinking": False}, None),
        (styles.THOUGHTS_TAKEN_OUT, {}, None),
    ],
)
def test_the_prompts_end_tells_whether_reasoning_has_begun(template: str, kwargs: Any, opened: str | None) -> None:
    text = text_with(template)
    reading = text.chat_format.reading(with_calls=False)
    assert opened_field(reading, text.render_chat([QUESTION], kwargs)) == opened


@pytest.mark.parametrize(
    "content", ["<think>", "<tool_call>", "<|im_start|>assistant\n<think>", "<tool_call>{</tool_call>"]
)
def test_nothing_that_a_user_says_begins_a_part(content: str) -> None:
    for template in (styles.THINKING_SWITCH, styles.THOUGHTS_TAKEN_OUT, styles.HERMES, styles.TIGHT):
        text = text_with(template)
        reading = text.chat_format.reading(with_calls=True)
        assert opened_field(reading, text.render_chat([{"role": "user", "content": content}])) is None


def test_the_tokenizers_own_response_template_wins() -> None:
    found = text_with(styles.HERMES, styles.TAGGED).chat_format
    assert found.spec == styles.TAGGED
    assert found.calls == HERMES_SHAPE
    assert (found.has_reasoning, found.marks_content) == (True, False)
    assert found.reasoning_markers == ("<think>", "</think>")


def test_channels_mark_the_content_too() -> None:
    found = text_with(styles.XML_PARAMETERS, styles.CHANNELS).chat_format
    assert (found.reads_calls, found.calls, found.marks_content) == (True, None, True)
    assert found.has_reasoning
    xml = text_with(styles.XML_PARAMETERS, styles.XML_CALLS).chat_format
    assert (xml.reads_calls, xml.calls, xml.marks_content, xml.has_reasoning) == (True, None, False, False)


def test_without_calls_their_markers_are_content() -> None:
    found = text_with(styles.THINKING).chat_format
    with_calls, without = found.reading(with_calls=True).template, found.reading(with_calls=False).template
    assert with_calls is not None
    assert without is not None
    assert with_calls.fields.keys() - without.fields.keys() == {"tool_calls"}
    assert text_with(styles.HERMES).chat_format.reading(with_calls=False).template is None


def test_only_delimiting_special_tokens_are_shown() -> None:
    names = {
        1: "<|im_start|>",
        2: "<|im_end|>",
        3: "<tool_call>",
        4: "</think>",
        5: "<|channel|>",
        6: "",
        7: "<|call|>",
    }
    for template, declared, found in (
        (styles.THINKING, None, {3, 4}),
        (styles.PLAIN, styles.CHANNELS, {5, 7}),
        (styles.PLAIN, None, set()),
    ):
        assert set(text_with(template, declared).chat_format.marks_among(names).names) == found


@pytest.mark.parametrize(
    "wrong",
    [
        {"fields": {"content": {}}},
        {"fields": {}, "start_anchor": "x"},
        {"fields": {"content": {"colour": 1}}, "start_anchor": "x"},
        {"fields": {"content": {"open_pattern": "("}}, "start_anchor": "x"},
        [1],
    ],
)
def test_a_response_template_that_means_nothing_is_refused_at_the_start(wrong: Any, tmp_path: Any) -> None:
    tokenizer_with(styles.PLAIN).save_pretrained(tmp_path)
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"response_template": wrong}))
    with pytest.raises(TokenizerRefused, match="response_template"):
        load_text(tmp_path)


def test_qwens_real_template() -> None:
    tokenizer = AutoTokenizer.from_pretrained(shared("models/tokenizers/qwen2.5"))
    text = TextProcessor(tokenizer)
    found = text.chat_format
    assert (found.calls, found.takes_tools, found.has_reasoning) == (HERMES_SHAPE, True, False)
    assert found.spec is not None
    assert found.spec["start_anchor"] == "<|im_start|>assistant\n"


def test_a_template_that_raises_says_so() -> None:
    calls = [{"type": "function", "function": {"name": "f", "arguments": {}}}] * 2
    with pytest.raises(InvalidRequest, match="one call at a time"):
        text_with(styles.REFUSES_TWO_CALLS).render_chat([{"role": "assistant", "content": "", "tool_calls": calls}])


def _calling(content: str | None) -> dict[str, Any]:
    call = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": {"where": "under the bed"}}}
    return {"role": "assistant", "content": content, "tool_calls": [call]}


RESULT = {"role": "tool", "tool_call_id": "call_1", "content": "dust"}


@pytest.mark.parametrize(
    "template", [styles.HERMES, styles.TEXT_OR_CALLS_BY_CONTENT, styles.TEXT_OR_CALLS_BY_CALLS, styles.XML_PARAMETERS]
)
def test_text_and_calls_of_one_turn_both_reach_the_model(template: str) -> None:
    text = text_with(template)
    rendered = text.render_chat([QUESTION, _calling("I shall look."), RESULT], tools=[TOOL])
    assert rendered.index("I shall look.") < rendered.index("under the bed") < rendered.index("dust")
    assert (rendered.count("I shall look."), rendered.count("under the bed")) == (1, 1)


@pytest.mark.parametrize("content", ["", None, "\n\n"])
@pytest.mark.parametrize(
    "template", [styles.TEXT_OR_CALLS_BY_CONTENT, styles.TEXT_OR_CALLS_BY_CALLS, styles.COUNTS_TURNS]
)
def test_calls_without_text_stay_one_turn(template: str, content: str | None) -> None:
    answer = {"role": "assistant", "content": "Dust."}
    rendered = text_with(template).render_chat([QUESTION, _calling(content), RESULT, answer, QUESTION], tools=[TOOL])
    assert rendered.count("under the bed") == 1
    assert rendered.count("<|im_start|>assistant") == 3


def test_text_that_a_template_would_drop_beside_calls_is_refused() -> None:
    text = text_with(styles.COUNTS_TURNS)
    with pytest.raises(InvalidRequest, match=r"either the text or the tool calls .* without content") as caught:
        text.render_chat([QUESTION, _calling("I shall look."), RESULT], tools=[TOOL])
    assert (caught.value.code, caught.value.param) == ("chat_template_error", "messages")
