"""Dialogues: a conversation, its tools and the format of its answer, run as choices whose text is split into parts.

Chat completions and responses share this module.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from anyio.to_thread import run_sync

from server.answers.chat_format import REASONING_FIELDS, ChatFormat
from server.answers.compiler import GrammarNotCompiled, GrammarRefused, GrammarTooCostly
from server.answers.grammar_source import after_reasoning, answer, json_answer
from server.answers.json_schema import SchemaRefused
from server.answers.parts import AnswerParts
from server.answers.reading import Reading
from server.answers.regions import opened_field
from server.answers.reply import Reply, ReplyDelta, ReplyParser
from server.answers.tools import NO_TOOLS, ToolUse
from server.api.generation.choices import check_num_logprobs, check_num_scores, choices_of, tokens_to_generate
from server.api.generation.objects import ChatFinishReason
from server.api.generation.running import Choice, Generation, TokenEntry
from server.api.generation.tools import ANY_OBJECT
from server.api.generation.wire import GenerationFields
from server.api.http.limiting import Caller
from server.api.http.services import Services
from server.engine.grammar import Grammar
from server.engine.request import TokenReadings
from server.errors import InvalidRequest
from server.steering.plan import SteeringPlan
from server.text import TextProcessor
from vectors.vocabulary import Part

Compile = Callable[[str], Grammar]
"""`GrammarCompiler.compile` or `.find`."""


@dataclass(frozen=True, slots=True)
class FieldNames:
    """The names of a dialogue's fields in the request, for errors."""

    messages: str = "messages"
    schema: str = "response_format"
    reasoning_effort: str = "reasoning_effort"


@dataclass(frozen=True)
class Dialogue:
    """What to answer, and how.

    `messages` have the form of chat templates. `schema`: the JSON schema of the answer's text; None: free text.
    `max_tokens` and `num_logprobs` are those of the request.
    """

    messages: Sequence[Mapping[str, Any]]
    use: ToolUse = NO_TOOLS
    schema: Mapping[str, Any] | None = None
    max_tokens: int | None = None
    num_logprobs: int | None = None
    reasoning_effort: str | None = None
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    names: FieldNames = FieldNames()


@dataclass(frozen=True, slots=True)
class ReplyPiece:
    """What a choice adds: a delta of its answer, the tokens behind it, and at the end its finish reason."""

    delta: ReplyDelta
    token_ids: tuple[int, ...]
    entries: tuple[TokenEntry, ...]
    finish_reason: ChatFinishReason | None
    readings: tuple[TokenReadings, ...] = ()


class Replies:
    """The answers to a dialogue while they are generated; `generation` runs them."""

    def __init__(self, generation: Generation, parsers: Sequence[ReplyParser]) -> None:
        self.generation = generation
        self._parsers = {choice.index: parser for choice, parser in zip(generation.choices, parsers, strict=True)}

    @property
    def num_reasoning_tokens(self) -> int:
        """The reasoning tokens of all answers so far."""
        return sum(parser.num_reasoning_tokens for parser in self._parsers.values())

    async def pieces(self) -> AsyncIterator[tuple[Choice, ReplyPiece]]:
        """The answers as they arrive; tokens without visible text come with the next piece that has some."""
        ids: dict[int, list[int]] = {index: [] for index in self._parsers}
        entries: dict[int, list[TokenEntry]] = {index: [] for index in self._parsers}
        readings: dict[int, list[TokenReadings]] = {index: [] for index in self._parsers}
        async for choice, piece in self.generation.pieces():
            parser = self._parsers[choice.index]
            ids[choice.index].extend(piece.token_ids)
            entries[choice.index].extend(piece.entries)
            readings[choice.index].extend(piece.readings)
            delta = parser.push(piece.text, num_tokens=len(piece.token_ids))
            reason: ChatFinishReason | None = piece.finish_reason
            if reason is not None:
                delta = delta + parser.finish(is_cut=reason in ("length", "abort") or choice.text.is_stopped)
                is_called = parser.has_calls and not parser.is_call_cut
                reason = "tool_calls" if is_called and reason == "stop" else reason
            if delta or reason is not None:
                kept = (ids[choice.index], entries[choice.index], readings[choice.index])
                yield choice, ReplyPiece(delta, tuple(kept[0]), tuple(kept[1]), reason, tuple(kept[2]))
                for each in kept:
                    each.clear()

    async def whole(self) -> list[tuple[Choice, Reply, ReplyPiece]]:
        """Every choice with its complete answer, and all of its additions as one piece."""
        parts: dict[int, list[ReplyPiece]] = {index: [] for index in self._parsers}
        async for choice, piece in self.pieces():
            parts[choice.index].append(piece)
        return [
            (choice, Reply.of([piece.delta for piece in parts[choice.index]]), _join(parts[choice.index]))
            for choice in self.generation.choices
        ]


def _join(pieces: Sequence[ReplyPiece]) -> ReplyPiece:
    return ReplyPiece(
        ReplyDelta(),
        token_ids=tuple(token_id for piece in pieces for token_id in piece.token_ids),
        entries=tuple(entry for piece in pieces for entry in piece.entries),
        readings=tuple(told for piece in pieces for told in piece.readings),
        finish_reason=pieces[-1].finish_reason,
    )


async def replies_to(
    asked: Sequence[tuple[Dialogue, SteeringPlan]],
    request: GenerationFields,
    services: Services,
    response_id: str,
    caller: Caller,
) -> Replies:
    """The answers to dialogues, each under its plan, ready to be submitted. A dialogue may be there several times.

    Raises `InvalidRequest` for what the model does not support. What has to be compiled is compiled when it is
    `caller`'s turn.
    """
    info = services.engine.info
    prepared: dict[int, _Prepared] = {}
    choices: list[Choice] = []
    parsers: list[ReplyParser] = []
    num_tokens = num_read = 0
    for dialogue, plan in asked:
        if id(dialogue) not in prepared:
            prepared[id(dialogue)] = await _prepared(dialogue, services, caller)
        found = prepared[id(dialogue)]
        max_tokens = tokens_to_generate(
            len(found.prompt),
            dialogue.max_tokens,
            default=None,
            max_model_len=info.max_model_len,
            param=dialogue.names.messages,
        )
        num_tokens += max_tokens * request.num_candidates
        num_read += len(found.prompt)
        check_num_logprobs(num_tokens, dialogue.num_logprobs, services, "top_logprobs")
        check_num_scores(num_read + num_tokens, plan, services)
        own = choices_of(
            request,
            services,
            plan,
            found.prompt,
            response_id=response_id,
            max_tokens=max_tokens,
            num_logprobs=dialogue.num_logprobs,
            begins_text=True,
            first_index=len(choices),
            marks=found.reading.marks,
            thoughts=found.parts,
            grammar=found.grammar,
            parts=found.parts if plan.depends_on_parts else None,
        )
        choices += own
        parsers += [found.parser() for _ in own]
    return Replies(Generation(services.engine, choices, services.metrics), parsers)


async def _prepared(dialogue: Dialogue, services: Services, caller: Caller) -> _Prepared:
    text, grammars, max_model_len = services.text, services.grammars, services.engine.info.max_model_len
    try:
        return await run_sync(_prepare, dialogue, text, grammars.find, max_model_len)
    except GrammarNotCompiled:
        return await services.compiling.run(
            lambda: _prepare(dialogue, text, grammars.compile, max_model_len), caller.owner
        )


@dataclass(frozen=True)
class _Prepared:
    """A dialogue in the form that the engine needs."""

    rendered: str
    prompt: tuple[int, ...]
    tools: Sequence[Mapping[str, Any]]
    reading: Reading
    parts: AnswerParts
    grammar: Grammar | None

    def parser(self) -> ReplyParser:
        return ReplyParser(self.reading, self.rendered, self.tools)


def _prepare(dialogue: Dialogue, text: TextProcessor, compile: Compile, max_model_len: int) -> _Prepared:
    chat_format = text.chat_format
    use = dialogue.use
    _check_tools(dialogue, chat_format)
    tools = [tool.for_template() for tool in use.tools]
    kwargs = _template_kwargs(dialogue, text)
    rendered = text.render_chat(dialogue.messages, kwargs, tools=tools, param=dialogue.names.messages)
    reading = text.reading([tool.name for tool in use.callable])
    opened = opened_field(reading, rendered)
    outside: Part = "content"
    if use.mode == "required":
        outside = "tool_calls"
    elif dialogue.schema is not None:
        outside = "structured"
    grammar = _grammar(dialogue, text, compile, is_reasoning=opened in REASONING_FIELDS)
    return _Prepared(
        rendered,
        tuple(text.encode_within(rendered, max_model_len, param=dialogue.names.messages, add_special_tokens=False)),
        tools,
        reading,
        AnswerParts(text.table, reading, opened=opened, outside=outside),
        grammar,
    )


def _check_tools(dialogue: Dialogue, chat_format: ChatFormat) -> None:
    use = dialogue.use
    has_calls = any(message["role"] == "tool" or message.get("tool_calls") for message in dialogue.messages)
    if (use.tools or has_calls) and not chat_format.takes_tools:
        param = "tools" if use.tools else dialogue.names.messages
        raise InvalidRequest(
            f"{param}: this model's chat template does not support tools", code="unsupported_parameter", param=param
        )
    if use.callable and not chat_format.reads_calls:
        raise InvalidRequest(
            "tools: the format of this model's tool calls is unknown (it has no response template, and the chat "
            "template does not show the format); expected tool_choice none",
            code="unsupported_parameter",
            param="tools",
        )
    if use.is_constrained and chat_format.calls is None:
        param = _constraining_field(use)
        raise InvalidRequest(
            f"{param}: this model's tool calls have a format that cannot be enforced; expected tool_choice "
            "auto or none, with parallel calls and without strict tools",
            code="unsupported_parameter",
            param=param,
        )
    if (dialogue.schema is not None or use.is_constrained) and chat_format.marks_content:
        param = dialogue.names.schema if dialogue.schema is not None else _constraining_field(use)
        raise InvalidRequest(
            f"{param}: this model wraps its answers in its own markers, so they cannot be constrained",
            code="unsupported_parameter",
            param=param,
        )


def _constraining_field(use: ToolUse) -> str:
    """The field of the request that makes constrained calls necessary."""
    if use.mode == "required" or use.allowed is not None:
        return "tool_choice"
    if not use.parallel:
        return "parallel_tool_calls"
    return f"tools.{next(index for index, tool in enumerate(use.tools) if tool.strict and tool in use.callable)}"


def _template_kwargs(dialogue: Dialogue, text: TextProcessor) -> dict[str, Any]:
    """The template's variables, with `reasoning_effort` if the template supports it."""
    kwargs = dict(dialogue.template_kwargs)
    effort = dialogue.reasoning_effort
    if effort is None:
        return kwargs
    if text.template_mentions("reasoning_effort"):
        return {"reasoning_effort": effort} | kwargs
    if text.template_mentions("enable_thinking"):
        return {"enable_thinking": effort != "none"} | kwargs
    if effort != "none" or text.chat_format.has_reasoning:
        param = dialogue.names.reasoning_effort
        raise InvalidRequest(
            f"{param}: this model's chat template does not support setting the reasoning effort",
            code="unsupported_parameter",
            param=param,
        )
    return kwargs


def _grammar(dialogue: Dialogue, text: TextProcessor, compile: Compile, *, is_reasoning: bool) -> Grammar | None:
    use, shape = dialogue.use, text.chat_format.calls
    if dialogue.schema is None and not use.is_constrained:
        return None
    markers = text.chat_format.reasoning_markers
    try:
        never_first = "" if markers is None or is_reasoning else markers[0]
        header = text.chat_format.content_header
        source = answer(dialogue.schema, use, shape, text.terminal, never_first=never_first, header=header)
        if markers is not None:
            source = after_reasoning(source, markers, text.terminal, is_open=is_reasoning)
        return compile(source)
    except GrammarTooCostly as error:  # trying its schemas one by one would cost as much for each
        param = dialogue.names.schema if dialogue.schema is not None else "tools"
        raise InvalidRequest(
            f"{param}: {error}; expected a simpler schema", code="invalid_json_schema", param=param
        ) from None
    except (GrammarRefused, SchemaRefused) as error:
        looser = _loosen(use, compile)
        if looser != use:
            return _grammar(replace(dialogue, use=looser), text, compile, is_reasoning=is_reasoning)
        _raise_for_schema(dialogue, compile)
        param = dialogue.names.schema if dialogue.schema is not None else _constraining_field(use)
        raise InvalidRequest(f"{param}: {error}", code="unsupported_parameter", param=param) from None


def _raise_for_schema(dialogue: Dialogue, compile: Compile) -> None:
    """Raise `InvalidRequest`, naming the schema, if one of the schemas cannot be compiled by itself."""
    use = dialogue.use
    schemas = [
        (
            dialogue.names.schema,
            "this schema",
            "type json_object, with which any object may be the answer",
            dialogue.schema,
        )
    ]
    schemas += [
        (
            f"tools.{index}",
            f"the schema of {tool.name!r}",
            "tool_choice auto and the tool without strict, with which it may be called with any object",
            tool.schema,
        )
        for index, tool in enumerate(use.tools)
        if tool in use.callable
    ]
    for param, what, otherwise, schema in schemas:
        reason = None if schema is None else _why_refused(schema, compile)
        if reason is not None:
            raise InvalidRequest(
                f"{param}: {what} cannot be enforced: {reason}; expected a schema without that, or {otherwise}",
                code="invalid_json_schema",
                param=param,
            )


def _loosen(use: ToolUse, compile: Compile) -> ToolUse:
    """`use`, in which a tool that need not keep to its schema takes any object if the schema cannot be enforced."""
    if use.mode != "auto":
        return use
    tools = [
        replace(tool, parameters=ANY_OBJECT)
        if not tool.strict and tool in use.callable and _why_refused(tool.schema, compile) is not None
        else tool
        for tool in use.tools
    ]
    return replace(use, tools=tuple(tools))


def _why_refused(schema: Mapping[str, Any], compile: Compile) -> str | None:
    """Why `schema` by itself cannot be enforced; None if it can."""
    try:
        compile(json_answer(schema))
    except (GrammarRefused, SchemaRefused) as error:
        return str(error)
    return None
