"""`/tokenize` and `/detokenize`: the tokens of a text or a chat, and the text of token ids, as in vLLM."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, Request
from pydantic import ConfigDict, Field, model_validator
from starlette.responses import Response

from server.api.about.objects import DetokenizedText, Tokens
from server.api.chat.wire import ChatMessage
from server.api.generation.steering import specs_of_model
from server.api.generation.tools import MAX_TOOLS, ChatTool
from server.api.generation.wire import MAX_MODEL_NAME_LENGTH
from server.api.http.auth import require
from server.api.http.bodies import MAX_JSON_BYTES, read_model
from server.api.http.description import JSON, Success, describe
from server.api.http.json_response import built_response, json_response
from server.api.http.parameters import RATE_LIMITS
from server.api.http.services import services_of
from server.api.http.wire import WireModel
from server.errors import InvalidRequest, NotFound, RateLimited
from server.keys import Role
from server.text import TextProcessor

router = APIRouter(dependencies=[Depends(require(Role.USE))], tags=["Tokens and models"])

MAX_TOKENS = 1 << 20
"""The most token ids of one request."""

_Model = Annotated[str, Field(max_length=MAX_MODEL_NAME_LENGTH)] | None


class TokenizeRequest(WireModel):
    """Body of `POST /tokenize`: a `prompt`, or `messages` as the chat template renders them.

    `add_special_tokens` defaults to true for a prompt and to false for a chat, whose template adds them itself.
    """

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {
        "continue_final_message": (False,),
        "chat_template": (),
        "media_io_kwargs": ({},),
        "mm_processor_kwargs": ({},),
    }

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [
                {"required": ["prompt"], "properties": {"prompt": {"type": "string"}}},
                {"required": ["messages"], "properties": {"messages": {"type": "array"}}},
            ]
        }
    )

    model: _Model = None
    prompt: str | None = None
    messages: Annotated[list[ChatMessage], Field(fail_fast=True, min_length=1)] | None = None
    add_generation_prompt: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    tools: Annotated[list[ChatTool], Field(max_length=MAX_TOOLS)] | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None

    @model_validator(mode="after")
    def _check_kind(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            both = self.prompt is not None
            param = "messages" if both else "prompt"
            message = "expected either prompt or messages, got both" if both else "expected either prompt or messages"
            raise InvalidRequest(message, code="invalid_value" if both else "missing_required_parameter", param=param)
        for name in ("add_generation_prompt", "chat_template_kwargs", "tools"):
            if self.prompt is not None and getattr(self, name) is not None:
                raise InvalidRequest(f"{name}: only allowed with messages", code="invalid_value", param=name)
        return self

    def encoded(self, text: TextProcessor) -> list[int]:
        """The token ids. Raises `InvalidRequest` when the chat template rejects the messages."""
        if self.messages is None:
            assert self.prompt is not None
            return text.encode_within(
                self.prompt, MAX_TOKENS, param="prompt", add_special_tokens=self.add_special_tokens is not False
            )
        if self.tools and not text.chat_format.takes_tools:
            raise InvalidRequest(
                "tools: this model's chat template does not support tools", code="unsupported_parameter", param="tools"
            )
        rendered = text.render_chat(
            [message.for_template() for message in self.messages],
            self.chat_template_kwargs,
            tools=[entry.function.tool().for_template() for entry in self.tools or ()],
            add_generation_prompt=self.add_generation_prompt is not False,
        )
        return text.encode_within(
            rendered, MAX_TOKENS, param="messages", add_special_tokens=self.add_special_tokens is True
        )


class DetokenizeRequest(WireModel):
    """Body of `POST /detokenize`."""

    model: _Model = None
    tokens: Annotated[
        list[Annotated[int, Field(json_schema_extra={"minimum": 0})]], Field(fail_fast=True, max_length=MAX_TOKENS)
    ]


@router.post("/tokenize")
@describe(
    Success(Tokens, "The tokens.", headers=RATE_LIMITS),
    bodies={JSON: TokenizeRequest},
    errors=(NotFound, RateLimited),
)
async def tokenize(request: Request) -> Response:
    """Convert a text or a chat into token ids.

    With `return_token_strs` the answer also has their spelling in the vocabulary.
    """
    services = services_of(request)
    body = await read_model(request, TokenizeRequest, MAX_JSON_BYTES)
    specs_of_model(body.model, services.engine.info.model_id)  # only for its errors: steering does not change tokens
    tokens = await run_sync(body.encoded, services.text)
    answer: Tokens = {
        "count": len(tokens),
        "max_model_len": services.engine.info.max_model_len,
        "tokens": tokens,
        "token_strs": await run_sync(services.text.symbols_of, tokens) if body.return_token_strs else None,
    }
    return await built_response(lambda: answer, len(tokens))


@router.post("/detokenize")
@describe(
    Success(DetokenizedText, "The text.", headers=RATE_LIMITS),
    bodies={JSON: DetokenizeRequest},
    errors=(NotFound, RateLimited),
)
async def detokenize(request: Request) -> Response:
    """Convert token ids into text, special tokens included."""
    services = services_of(request)
    body = await read_model(request, DetokenizeRequest, MAX_JSON_BYTES)
    info = services.engine.info
    specs_of_model(body.model, info.model_id)
    if body.tokens and not 0 <= min(body.tokens) <= max(body.tokens) < info.vocab_size:
        raise InvalidRequest(
            f"tokens: expected token ids from 0 to {info.vocab_size - 1} (the model's vocabulary)",
            code="invalid_token",
            param="tokens",
        )
    return json_response(DetokenizedText(prompt=await run_sync(services.text.decode_all, body.tokens)))
