"""Small chat templates that write calls as the published ones of each family do, around ChatML's turns."""

from __future__ import annotations

from dataclasses import dataclass

_HEAD = (
    "{% if tools %}{{ '<|im_start|>system\n' }}{% for tool in tools %}{{ tool | tojson }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endif %}"
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}%TURN%{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_CALLS = (
    "{% for call in message['tool_calls'] %}{% set name = call['function']['name'] %}"
    "{% set arguments = call['function']['arguments'] %}%CALL%{% endfor %}"
)
_JSON = "{{ '{\"name\": \"' + name + '\", \"arguments\": ' + (arguments | tojson) + '}' }}"


def _template(call: str, *, before: str = "", after: str = "", turn: str = "", always: str = "") -> str:
    """`before` and `after` surround all calls of a turn; `always` is written for every message."""
    calls = before + _CALLS.replace("%CALL%", call) + after
    turn = turn or "{{ message['content'] or '' }}{% if message['tool_calls'] %}%CALLS%{% endif %}"
    return _HEAD.replace("%TURN%", always + turn.replace("%CALLS%", calls))


def _arguments(key: str, *, value: str = "{{ value if value is string else value | tojson }}") -> str:
    return "{% for key, value in arguments.items() %}" + key.replace("%VALUE%", value) + "{% endfor %}"


@dataclass(frozen=True)
class Family:
    """A template, the tags that its tokenizer has as tokens, whether an answer may have several calls, and thoughts."""

    template: str
    tags: tuple[str, ...] = ()
    repeats: bool = True
    thinks: bool = False
    is_special: bool = True


_NINE = (
    "{% for call in message['tool_calls'] or [] %}{% if call['id'] | length != 9 %}"
    "{{ raise_exception('call ids have nine letters') }}{% endif %}{% endfor %}"
)
_THINKS = "{# <think> </think> #}"

FAMILIES: dict[str, Family] = {
    "hermes": Family(
        _template("{{ '\n<tool_call>\n' }}" + _JSON + "{{ '\n</tool_call>' }}") + _THINKS,
        ("<tool_call>", "</tool_call>", "<think>", "</think>"),
        thinks=True,
        is_special=False,
    ),
    "hermes in letters": Family(
        _template("{{ '\n<tool_call>\n' }}" + _JSON + "{{ '\n</tool_call>' }}") + _THINKS, thinks=True
    ),
    "mistral list": Family(
        _template(
            _JSON.replace("'}' }}", "', \"id\": \"' + call['id'] + '\"}' }}") + "{{ ', ' if not loop.last }}",
            before="{{ '[TOOL_CALLS][' }}",
            after="{{ ']' }}",
            always=_NINE,
        ),
        ("[TOOL_CALLS]",),
    ),
    "mistral names": Family(
        _template("{{ '[TOOL_CALLS]' + name + '[ARGS]' + (arguments | tojson) }}", always=_NINE),
        ("[TOOL_CALLS]", "[ARGS]"),
    ),
    "mistral ids": Family(
        _template("{{ '[TOOL_CALLS]' + name + '[CALL_ID]' + call['id'] + '[ARGS]' + (arguments | tojson) }}"),
        ("[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"),
    ),
    "llama 3": Family(
        _template(
            "{{ '{\"name\": \"' + name + '\", \"parameters\": ' + (arguments | tojson) + '}' }}",
            always="{% if message['tool_calls'] and message['tool_calls'] | length > 1 %}"
            "{{ raise_exception('one at a time') }}{% endif %}",
        ),
        repeats=False,
    ),
    "deepseek": Family(
        _template(
            "{{ '<｜tool▁call▁begin｜>function<｜tool▁sep｜>' + name }}"
            "{{ '\n```json\n' + arguments + '\n```<｜tool▁call▁end｜>' }}"
            "{{ '\n' if not loop.last }}",
            turn="{% if message['content'] is none %}%CALLS%{% else %}{{ message['content'] }}{% endif %}",
            before="{{ '<｜tool▁calls▁begin｜>' }}",
            after="{{ '<｜tool▁calls▁end｜>' }}",
        )
        + _THINKS,
        tuple(f"<｜tool▁{name}｜>" for name in ("calls▁begin", "call▁begin", "sep", "call▁end", "calls▁end")),
        thinks=True,
    ),
    "kimi": Family(
        _template(
            "{{ '<|call_begin|>' + call['id'] + '<|argument_begin|>' + (arguments | tojson) + '<|call_end|>' }}",
            before="{{ '<|section_begin|>' }}",
            after="{{ '<|section_end|>' }}",
        ),
        ("<|section_begin|>", "<|call_begin|>", "<|argument_begin|>", "<|call_end|>", "<|section_end|>"),
    ),
    "glm": Family(
        _template(
            "{{ '\n<tool_call>' + name + '\n' }}"
            + _arguments("{{ '<arg_key>' + key + '</arg_key>\n<arg_value>' }}%VALUE%{{ '</arg_value>\n' }}")
            + "{{ '</tool_call>' }}"
        ),
        ("<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"),
    ),
    "qwen coder": Family(
        _template(
            "{{ '\n<tool_call>\n<function=' + name + '>\n' }}"
            + _arguments("{{ '<parameter=' + key + '>\n' }}%VALUE%{{ '\n</parameter>\n' }}")
            + "{{ '</function>\n</tool_call>' }}"
        ),
        ("<tool_call>", "</tool_call>"),
        is_special=False,
    ),
    "granite": Family(
        _template(_JSON + "{{ ', ' if not loop.last }}", before="{{ '<|tool_call|>[' }}", after="{{ ']' }}"),
        ("<|tool_call|>",),
    ),
    "phi 4": Family(
        _template(
            _JSON + "{{ ', ' if not loop.last }}",
            before="{{ '<|tool_call|>[' }}",
            after="{{ ']<|/tool_call|>' }}",
        ),
        ("<|tool_call|>", "<|/tool_call|>"),
    ),
    "functionary": Family(
        _template("{{ '<function=' + name + '>' + (arguments | tojson) + '</function>' }}"),
    ),
    "gemma 4": Family(
        _template(
            "{{ '<|tool_call>call:' + name + '{' }}"
            + _arguments(
                "{{ key + ':' }}%VALUE%{{ ',' if not loop.last }}",
                value="{{ '<|\"|>' + value + '<|\"|>' if value is string else value | tojson }}",
            )
            + "{{ '}<tool_call|>' }}"
        ),
        ("<|tool_call>", "<tool_call|>", '<|"|>'),
    ),
    "lfm 2": Family(
        _template(
            "{{ name + '(' }}"
            + _arguments(
                "{{ key + '=' }}%VALUE%{{ ', ' if not loop.last }}",
                value='{{ "\'" + value + "\'" if value is string else value | tojson }}',
            )
            + "{{ ')' }}{{ ', ' if not loop.last }}",
            before="{{ '<|tool_call_start|>[' }}",
            after="{{ ']<|tool_call_end|>' }}",
        ),
        ("<|tool_call_start|>", "<|tool_call_end|>"),
    ),
}


CHANNELS = (
    "{% if tools %}{{ '<|im_start|>system\n' }}{% for tool in tools %}{{ tool | tojson }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endif %}"
    "{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{% if message['tool_calls'] %}{% set call = message['tool_calls'][0]['function'] %}"
    "{{ '<|start|>assistant to=functions.' + call['name'] + '<|channel|>commentary json<|message|>' }}"
    "{{ (call['arguments'] | tojson) + '<|call|>' }}"
    "{% else %}{{ '<|start|>assistant<|channel|>final<|message|>' + message['content'] + '<|end|>' }}{% endif %}"
    "{% else %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"
)
"""Answers in channels, as GPT-OSS has them."""

CHANNEL_TAGS = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|call|>", "<|constrain|>", "<|return|>")
