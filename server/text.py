"""TextProcessor: turns prompts and chats into token ids, with the tokenizer and the model's chat template.

The way back, from generated tokens to text, is in `detokenizer.py`.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from server.answers.chat_format import ChatFormat, format_of
from server.answers.compiler import LIMITS, GrammarCompiler
from server.answers.conventions import without_cut_arguments
from server.answers.grammar_source import terminal
from server.answers.reading import Reading
from server.detokenizer import ChoiceText, TokenTable
from server.engine.refusal import OWN_CODE, needs_own_code
from server.errors import ContextLengthExceeded, InvalidRequest
from server.marks import Marks
from vectors.confined import Limits

_RESERVED_KWARGS = frozenset(inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters) | {
    "messages",
    "return_assistant_tokens_mask",
}


_LIKELY_CHARACTERS = 8
"""A text with more characters for each token that it may have is encoded from its beginning on, to see how it goes."""

_SOME_TEXT = "Once upon a time"
_COPY_TOKENIZER = (
    "copy tokenizer.json (or tokenizer.model) and tokenizer_config.json from the model that it was trained from"
)


class TokenizerRefused(Exception):
    """The tokenizer or the chat template cannot be loaded; the message says why."""


def load_text(source: str | Path, *, revision: str | None = None, chat_template: Path | None = None) -> TextProcessor:
    """The text processor of the model in folder or hub id `source`. Raises `TokenizerRefused`."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError, AttributeError, TypeError) as error:
        if Path(source).is_dir() and not _has_tokenizer(Path(source)):
            raise TokenizerRefused(f"{source} has no tokenizer: {_COPY_TOKENIZER}") from error
        reason = OWN_CODE if needs_own_code(error) else str(error).strip() or type(error).__name__
        raise TokenizerRefused(f"cannot load the tokenizer of {source}: {reason}") from error
    if not tokenizer.encode(_SOME_TEXT, add_special_tokens=False):
        raise TokenizerRefused(f"the tokenizer of {source} has no vocabulary: {_COPY_TOKENIZER}")
    template = None
    if chat_template is not None:
        try:
            template = chat_template.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise TokenizerRefused(f"cannot read the chat template {chat_template}: {error}") from None
    text = TextProcessor(tokenizer, chat_template=template)
    try:
        text.chat_format  # noqa: B018 - read now: a client should not be the first to find a bad template
    except (ValueError, TypeError, AttributeError) as error:
        raise TokenizerRefused(f"the response_template of {source} is not valid: {error}") from error
    return text


def _has_tokenizer(folder: Path) -> bool:
    """True when `folder` has a file that may hold a vocabulary."""
    return any(
        path.name.startswith(("tokenizer.", "vocab", "spiece", "sentencepiece", "tekken")) or path.suffix == ".tiktoken"
        for path in folder.iterdir()
    )


class TextProcessor:
    """Encodes prompts and renders chats. Thread-safe."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, chat_template: str | None = None) -> None:
        self._tokenizer = tokenizer
        self._chat_template = chat_template
        self._backend = getattr(tokenizer, "backend_tokenizer", None)
        if self._backend is not None:
            self._backend.no_truncation()  # a prompt that is too long is refused, never truncated
            self._backend.no_padding()
        self.table = TokenTable(tokenizer)

    @property
    def has_chat_template(self) -> bool:
        """True when chats can be rendered."""
        return (self._chat_template or self._tokenizer.chat_template) is not None

    def tokens_beyond(self, vocab_size: int) -> list[str]:
        """The names of the tokens whose ids a model of `vocab_size` tokens does not have."""
        ids = sorted((token_id, name) for name, token_id in self._tokenizer.get_vocab().items())
        return [name for token_id, name in ids if token_id >= vocab_size]

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`, with the tokenizer's default special tokens unless told otherwise."""
        if self._backend is not None:  # unlike `encode`, a batch lets other threads run
            return list(self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids)
        return list(self._tokenizer.encode(text, add_special_tokens=add_special_tokens))

    def encode_within(self, text: str, limit: int, *, param: str, add_special_tokens: bool = True) -> list[int]:
        """`encode`, of a text for which there is room for `limit` tokens; the caller checks their exact number.

        A text that is far longer costs no more than the limit: raises `ContextLengthExceeded`, naming `param`, without
        encoding what no `limit` tokens can spell, and otherwise after encoding a beginning with twice as many tokens.
        """
        most = limit * self._longest_token
        length = _LIKELY_CHARACTERS * limit
        while len(text) > most or length < len(text):
            if len(text) > most or len(self.encode(text[:length], add_special_tokens=False)) > 2 * limit:
                raise ContextLengthExceeded(
                    f"{param}: expected at most {limit} tokens, got a text of {len(text)} characters, which has more",
                    param=param,
                )
            length *= 2
        return self.encode(text, add_special_tokens=add_special_tokens)

    @cached_property
    def _longest_token(self) -> int:
        """The characters of the longest token."""
        return max(map(len, self._tokenizer.get_vocab()), default=1)

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of a prompt given as token ids, without special tokens."""
        text = ChoiceText(self.table, begins_text=True)
        return "".join(map(text.push, token_ids)) + text.flush()

    def decode_all(self, token_ids: Sequence[int]) -> str:
        """The text of token ids, special tokens included."""
        if self.table.is_byte_level:
            return b"".join(map(self.table.bytes_of, token_ids)).decode("utf-8", "replace")
        text = self._tokenizer.decode(list(token_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text

    def symbols_of(self, token_ids: Sequence[int]) -> list[str]:
        """The tokens as spelled in the tokenizer's vocabulary; empty for ids that only the model has."""
        symbols = self._tokenizer.convert_ids_to_tokens(list(token_ids))
        return [symbol if isinstance(symbol, str) else "" for symbol in symbols]

    def has_text(self, token_ids: Sequence[int]) -> bool:
        """True when at least one of the tokens is text, so that a continuation is not the start of a text."""
        return any(not self.table.is_special(token_id) and self.table.bytes_of(token_id) for token_id in token_ids)

    @cached_property
    def chat_format(self) -> ChatFormat:
        """How the model formats the parts of its answers."""
        response_template = getattr(self._tokenizer, "response_template", None)
        return format_of(self._template_source, response_template, self._rendered)

    @cached_property
    def marks(self) -> Marks:
        """The tokens that delimit the parts of an answer."""
        return self.chat_format.marks_among(self.table.added_names)

    def reading(self, callable_names: Collection[str]) -> Reading:
        """How an answer is read that may call these functions; without any, what looks like a call is content."""
        with_calls = bool(callable_names)
        return self.chat_format.reading(self.marks, with_calls=with_calls, callable_names=callable_names)

    def template_mentions(self, variable: str) -> bool:
        """True when the chat template uses `variable`, so that a request can set it."""
        return re.search(rf"\b{re.escape(variable)}\b", self._template_source or "") is not None

    def terminal(self, text: str) -> str:
        """`text` as it is written in a grammar for this tokenizer."""
        return terminal(text, self.table.special_names | self.marks.names)

    def grammar_compiler(
        self, vocab_size: int, end_token_ids: Collection[int], limits: Limits = LIMITS
    ) -> GrammarCompiler:
        """A compiler of grammars for this tokenizer and a model of `vocab_size` tokens."""
        return GrammarCompiler(self._tokenizer, vocab_size, end_token_ids, self.marks.names, limits=limits)

    @property
    def end_token_ids(self) -> frozenset[int]:
        """The tokens that end an answer for the tokenizer, whatever the model's configuration says."""
        token_id = self._tokenizer.eos_token_id
        return frozenset() if not isinstance(token_id, int) else frozenset({token_id})

    @property
    def _template_source(self) -> str | None:
        source = self._chat_template or self._tokenizer.chat_template
        if isinstance(source, dict):  # templates by purpose
            source = source.get("tool_use", source.get("default"))
        return source if isinstance(source, str) else None

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        template_kwargs: Mapping[str, Any] | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        add_generation_prompt: bool = True,
        param: str = "messages",
    ) -> str:
        """The prompt of a chat. It ends where the assistant's turn begins, unless `add_generation_prompt` is False.

        Raises `InvalidRequest`, naming `param`: no template, reserved arguments, or an error of the template itself.
        """
        if not self.has_chat_template:
            raise InvalidRequest(
                "this model has no chat template; use /v1/completions or start the server with --chat-template FILE",
                code="no_chat_template",
                param=param,
            )
        kwargs = dict(template_kwargs or {})
        for name in kwargs:
            if name in _RESERVED_KWARGS:
                raise InvalidRequest(
                    f"chat_template_kwargs: {name[:60]!r} is reserved by the server",
                    code="invalid_value",
                    param=f"chat_template_kwargs.{name[:60]}",
                )
        try:
            adapted = self.chat_format.conventions.adapted(messages)
        except ValueError as error:
            raise InvalidRequest(
                f"{param}: the model's chat template cannot render these: {error}",
                code="chat_template_error",
                param=param,
            ) from None
        options = {"tools": tools, "add_generation_prompt": add_generation_prompt, **kwargs}
        try:
            try:
                return self._rendered(adapted, **options)
            except Exception:  # a template is the model author's program and may raise anything
                if (without := without_cut_arguments(adapted)) == adapted:
                    raise
                return self._rendered(without, **options)
        except Exception as error:  # as above
            raise InvalidRequest(
                f"the model's chat template rejected these messages: {str(error)[:500]}",
                code="chat_template_error",
                param=param,
            ) from error

    def _rendered(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        add_generation_prompt: bool = False,
        **kwargs: Any,
    ) -> str:
        conversation = [dict(message) for message in messages]
        descriptions: Any = [dict(tool) for tool in tools] or None
        if any(message.get("content", "") is None for message in conversation):  # apply_chat_template would remove it
            template = self._tokenizer.get_chat_template(self._chat_template, descriptions)
            found: Any = render_jinja_template(
                [conversation],
                tools=descriptions,
                chat_template=template,
                add_generation_prompt=add_generation_prompt,
                **{**self._tokenizer.special_tokens_map, **kwargs},
            )
            return str(found[0][0])
        rendered = self._tokenizer.apply_chat_template(
            conversation,
            tools=descriptions,
            chat_template=self._chat_template,
            add_generation_prompt=add_generation_prompt,
            tokenize=False,
            **kwargs,
        )
        assert isinstance(rendered, str)
        return rendered
