"""TextProcessor: prompts to token ids, by the tokenizer and the model's chat template.

It knows the tokenizer; it does not know requests, the engine or the wire. Generated tokens become text in
`detokenizer.py`.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from server.detokenizer import ChoiceText, TokenTable
from server.errors import InvalidRequest

_RESERVED_KWARGS = frozenset(inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters) | {
    "messages",
    "return_assistant_tokens_mask",
}


class TokenizerRefused(Exception):
    """The tokenizer or the chat template cannot be loaded; the message says why."""


def load_text(source: str | Path, *, revision: str | None = None, chat_template: Path | None = None) -> TextProcessor:
    """The text processor of the model in folder or hub id `source`. Raises `TokenizerRefused`."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError, AttributeError, TypeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise TokenizerRefused(f"{source}: its tokenizer cannot be loaded: {reason}") from error
    template = None
    if chat_template is not None:
        try:
            template = chat_template.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise TokenizerRefused(f"the chat template {chat_template} cannot be read: {error}") from None
    return TextProcessor(tokenizer, chat_template=template)


class TextProcessor:
    """Encodes prompts and renders chats. Thread-safe."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, chat_template: str | None = None) -> None:
        self._tokenizer = tokenizer
        self._chat_template = chat_template
        self._backend = getattr(tokenizer, "backend_tokenizer", None)
        if self._backend is not None:
            self._backend.no_truncation()  # a prompt that is too long is refused, never cut
            self._backend.no_padding()
        self.table = TokenTable(tokenizer)

    @property
    def has_chat_template(self) -> bool:
        """True when chats can be rendered."""
        return (self._chat_template or self._tokenizer.chat_template) is not None

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`, with the tokenizer's default special tokens unless told otherwise."""
        if self._backend is not None:
            return list(self._backend.encode(text, add_special_tokens=add_special_tokens).ids)
        return list(self._tokenizer.encode(text, add_special_tokens=add_special_tokens))

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of a prompt given as token ids, without special tokens."""
        text = ChoiceText(self.table, begins_text=True)
        return "".join(map(text.push, token_ids)) + text.flush()

    def has_text(self, token_ids: Sequence[int]) -> bool:
        """True when at least one of the tokens is text, so that a continuation does not begin a text."""
        return any(not self.table.is_special(token_id) and self.table.bytes_of(token_id) for token_id in token_ids)

    def render_chat(
        self, messages: Sequence[Mapping[str, Any]], template_kwargs: Mapping[str, Any] | None = None
    ) -> str:
        """The prompt of a chat, ending where the assistant begins to speak.

        Raises `InvalidRequest`: no template, reserved arguments, or the template's own refusal.
        """
        if not self.has_chat_template:
            raise InvalidRequest(
                "this model has no chat template; use /v1/completions, or start the server with --chat-template FILE",
                code="no_chat_template",
                param="messages",
            )
        kwargs = dict(template_kwargs or {})
        for name in kwargs:
            if name in _RESERVED_KWARGS:
                raise InvalidRequest(
                    f"chat_template_kwargs: {name[:60]!r} is set by the server",
                    code="invalid_value",
                    param=f"chat_template_kwargs.{name[:60]}",
                )
        try:
            rendered = self._tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                chat_template=self._chat_template,
                add_generation_prompt=True,
                tokenize=False,
                **kwargs,
            )
        except Exception as error:  # a template is a program of the model's author; it may raise anything
            raise InvalidRequest(
                f"the model's chat template refuses these messages: {str(error)[:500]}",
                code="chat_template_error",
                param="messages",
            ) from error
        assert isinstance(rendered, str)
        return rendered

    def encode_chat(
        self, messages: Sequence[Mapping[str, Any]], template_kwargs: Mapping[str, Any] | None = None
    ) -> list[int]:
        """Token ids of a chat: the rendered template says all special tokens itself."""
        return self.encode(self.render_chat(messages, template_kwargs), add_special_tokens=False)
