"""Chat templates in the styles that models have, and response templates in those of tokenizers."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from tests.server.api.serving import byte_tokenizer

_TURNS = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + (message['content'] or '') }}"
    "%CALLS%{{ '<|im_end|>\n' }}{% endfor %}"
)
_PROMPT = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
_TOOLS = (
    "{% if tools %}{{ '<|im_start|>system\nTools:' }}{% for tool in tools %}{{ '\n' + (tool | tojson) }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endif %}"
)


def _calls(body: str, *, first: str = "\\n", more: str = "\\n") -> str:
    return (
        "{% for call in message['tool_calls'] or [] %}{% set name = call['function']['name'] %}"
        "{% set arguments = call['function']['arguments'] %}"
        f"{{{{ '{first}' if loop.first else '{more}' }}}}{body}{{% endfor %}}"
    )


def _template(calls: str, *, tools: str = _TOOLS, prompt: str = _PROMPT) -> str:
    return tools + _TURNS.replace("%CALLS%", calls) + prompt


_HERMES = "{{ '<tool_call>\n{\"name\": \"' + name + '\", \"arguments\": ' + (arguments | tojson) + '}\n</tool_call>' }}"
_THINK = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"

PLAIN = _template("", tools="")
"""ChatML without tools."""

HERMES = _template(_calls(_HERMES))
"""Calls as JSON between tags, on lines of their own."""

TIGHT = (
    _TOOLS
    + "{% for message in messages %}{{ '<|' + message['role'] + '|>' + (message['content'] or '') }}"
    + _calls(
        "{{ '<call>{\"name\": \"' + name + '\", \"parameters\": ' + (arguments | tojson) + '}</call>' }}",
        first="",
        more="",
    )
    + "{{ '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
"""No white space anywhere: the role's marker ends like a call's closing tag."""

THINKING = _template(_calls(_HERMES), prompt=_THINK)
"""The generation prompt has begun the reasoning."""

THINKING_SWITCH = _template(
    _calls(_HERMES),
    prompt=_PROMPT.replace(
        "{% endif %}",
        "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
        "{% endif %}",
    ),
)
"""`enable_thinking` false writes empty reasoning into the prompt."""

THOUGHTS_TAKEN_OUT = _template("", tools="").replace(
    "(message['content'] or '')", "(message['content'] or '').split('</think>')[-1]"
)
"""The model thinks by itself; the template only takes old thoughts out."""

XML_PARAMETERS = _template(
    _calls(
        "{{ '<tool_call>\n<function=' + name + '>\n' }}{% for key, value in arguments.items() %}"
        "{{ '<parameter=' + key + '>\n' + value + '\n</parameter>\n' }}{% endfor %}{{ '</function>\n</tool_call>' }}"
    )
)
"""Arguments are XML elements."""

LIST = _template(
    "{% if message['tool_calls'] %}{{ '[TOOL_CALLS][' }}"
    + _calls("{{ '{\"name\": \"' + name + '\", \"arguments\": ' + (arguments | tojson) + '}' }}", first="", more=", ")
    + "{{ ']' }}{% endif %}"
)
"""All calls in one list after one marker."""

BARE_JSON = _template(
    _calls("{{ '{\"name\": \"' + name + '\", \"parameters\": ' + (arguments | tojson) + '}' }}", first="", more="")
)
"""A call is bare JSON: nothing tells it from an answer."""

PYTHON_ARGUMENTS = _template(
    _calls("{{ '<tool_call>{\"name\": \"' + name + '\", \"arguments\": ' ~ arguments ~ '}</tool_call>' }}")
)
"""Prints a mapping as Python does."""

REFUSES_TOOLS = "{% if tools %}{{ raise_exception('no tools here') }}{% endif %}" + PLAIN
"""Raises for tools."""

REFUSES_TWO_CALLS = (
    "{% for message in messages %}{% if (message['tool_calls'] or []) | length > 1 %}"
    "{{ raise_exception('one call at a time') }}{% endif %}{% endfor %}" + HERMES
)
"""Raises for two calls in one answer."""

OTHER_END = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + (message['content'] or '') }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}"
    "{% else %}{{ '<|im_end|></think> this is the end of all that was said' }}{% endif %}"
)
"""Ends differently with and without the generation prompt."""

TAGGED: dict[str, Any] = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "content": {},
        "reasoning_content": {"open": "<think>", "close": "</think>"},
        "tool_calls": {
            "open": "<tool_call>",
            "close": "</tool_call>",
            "content": "json",
            "repeats": True,
            "transform": {"type": "function", "function": "{content}"},
        },
    },
}
"""Reasoning and JSON calls between tags."""

CHANNELS: dict[str, Any] = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|im_start|>assistant",
    "fields": {
        "thinking": {"open": "<|channel|>analysis<|message|>", "close": "<|end|>", "repeats": True, "join": "\n"},
        "tool_calls": {
            "open_pattern": r"(?:<\|channel\|>commentary )?to=functions\.(?P<name>\w+)[^{]*<\|message\|>",
            "close": "<|call|>",
            "content": "json",
            "repeats": True,
            "transform": {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}},
        },
        "content": {"open": "<|channel|>final<|message|>", "close": ["<|end|>", "<|return|>"]},
    },
}
"""Every part in a channel of its own; the name of a call is in its header."""

XML_CALLS: dict[str, Any] = {
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "content": {},
        "tool_calls": {
            "open_pattern": r"<tool_call>\s*<function=(?P<name>\w+)>\s*",
            "close_pattern": r"\s*</function>\s*</tool_call>",
            "repeats": True,
            "content": "xml-inline",
            "content_args": {"tag_pattern": r"<parameter=(?P<key>\w+)>\n(?P<value>.*?)\n</parameter>"},
            "transform": {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}},
        },
    },
}
"""Arguments are XML elements, cast by the tool's schema."""

LISTED_CALLS: dict[str, Any] = {
    "start_anchor_pattern": r"<\|im_start\|>assistant\n",
    "fields": {
        "content": {},
        "tool_calls": {
            "open": "[TOOL_CALLS]",
            "close_pattern": r"\Z",
            "content": "json",
            "transform": {"type": "function", "function": {"name": "{name}", "arguments": "{arguments}"}},
            "transform_each": True,
        },
    },
}
"""All calls in one list, up to the end."""


PATTERNED: dict[str, Any] = {
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "content": {},
        "tool_calls": {"open_pattern": r"<calls?>\s*", "close_pattern": r"</calls?>", "content": "json"},
    },
}
"""JSON calls between delimiters that are patterns, so that each is known one character later."""


def tokenizer_with(
    chat_template: str | None, response_template: dict[str, Any] | None = None, specials: Sequence[str] = ()
) -> Any:
    """The byte tokenizer with these templates, and `specials` as special tokens."""
    tokenizer = byte_tokenizer(chat_template)
    tokenizer.add_special_tokens({"extra_special_tokens": [*specials]}, replace_extra_special_tokens=False)
    if response_template is not None:
        tokenizer.response_template = copy.deepcopy(response_template)
    return tokenizer


TEXT_OR_CALLS_BY_CONTENT = _template(
    "{% if message['content'] is none %}" + _calls(_HERMES) + "{% endif %}",
)
"""Writes the calls of a turn only when its content is null."""

TEXT_OR_CALLS_BY_CALLS = _TOOLS + (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}{% if message['tool_calls'] %}"
    + _calls(_HERMES)
    + "{% else %}{{ message['content'] }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    + _PROMPT
)
"""Writes the text of a turn only when it has no calls."""

COUNTS_TURNS = (
    "{% set turns = namespace(number=0) %}{% for message in messages %}"
    "{% if message['role'] != 'tool' and not message['tool_calls'] %}"
    "{% if (message['role'] == 'user') != (turns.number % 2 == 0) %}{{ raise_exception('turns must alternate') }}"
    "{% endif %}{% set turns.number = turns.number + 1 %}{% endif %}{% endfor %}" + TEXT_OR_CALLS_BY_CALLS
)
"""Writes the text of a turn only when it has no calls, and allows no two answers in a row."""
