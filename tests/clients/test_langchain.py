"""LangChain's standard tests of a chat model, run with `ChatOpenAI` against the embedded model.

The model is a toy that never saw JSON. Sampling parameters that any client may send let its JSON come to an end; what
needs a model of more wit is listed in `NEEDS_WIT`, and `test_langchain_calls.py` shows the same on the wire.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import pytest

from server.demo import MODEL_NAME
from tests.clients.demo_tokens import json_that_ends

pytest.importorskip("langchain_openai")
pytest.importorskip("langchain_tests")

from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests

pytestmark = [
    # LangChain serialises what the SDK parsed under a type that does not know it, and warns of what a test of its asks
    pytest.mark.filterwarnings("ignore:Pydantic serializer warnings:UserWarning"),
    pytest.mark.filterwarnings("ignore:Received a Pydantic BaseModel V1 schema:UserWarning"),
]

NEEDS_WIT = {
    "test_agent_loop": "the model would have to decide by itself to call a tool (tool_choice is auto there)",
    "test_json_mode": "json_mode has no schema: the model would have to take the keys from the prompt's words",
    "test_unicode_tool_call_integration": "the model would have to copy Chinese and Japanese names into arguments",
}
"""Standard tests left out because the toy model cannot answer them, each with the reason.

LangChain itself skips those of images, audio and PDF, which a model of text does not read, those of Anthropic's message
format, and `test_stream_time`, which measures against recordings.
"""

Suite = TypeVar("Suite", bound=type[ChatModelIntegrationTests])


def leaving_out(reasons: dict[str, str]) -> Callable[[Suite], Suite]:
    """Expect some standard tests of a class to fail, as LangChain wants that said; they run all the same."""

    def decorate(suite: Suite) -> Suite:
        for name, reason in reasons.items():
            setattr(suite, name, _expected_to_fail(getattr(suite, name), reason))
        return suite

    return decorate


def _expected_to_fail(standard: Callable[..., None], reason: str) -> Callable[..., None]:
    def run(self: Any, *arguments: Any, **named: Any) -> None:
        standard(self, *arguments, **named)

    run.__wrapped__ = standard  # type: ignore[attr-defined]  # pytest reads the parameters there
    run.pytestmark = [  # type: ignore[attr-defined]  # and its marks here
        *getattr(standard, "pytestmark", []),
        pytest.mark.xfail(reason=reason, strict=True).mark,
    ]
    return run


class OnTheEmbeddedModel(ChatModelIntegrationTests):
    """What all suites here have in common: the client, and that the model reads text only."""

    __test__ = False
    chat_model_class = ChatOpenAI
    model_override_value = f"{MODEL_NAME}+cheerful"
    base_url = ""
    options: dict[str, Any] = {}  # noqa: RUF012 - the standard tests read it from the class and change nothing

    @pytest.fixture(autouse=True)
    def _serve(self, base_url: str) -> None:
        type(self).base_url = base_url

    @property
    def chat_model_params(self) -> dict[str, Any]:
        """As docs/clients.md has it, and greedy."""
        return {
            "model": MODEL_NAME,
            "base_url": self.base_url,
            "api_key": "none",
            "stream_usage": True,
            "temperature": 0,
            "max_retries": 0,
            **self.options,
        }


class TestText(OnTheEmbeddedModel):
    """What the model does by itself: text."""

    __test__ = True
    has_tool_calling = False
    has_structured_output = False


class TestTextByResponses(TestText):
    """The same through `/v1/responses`."""

    options = {"use_responses_api": True}  # noqa: RUF012 - as above


@leaving_out(NEEDS_WIT)
class TestToolsAndSchemas(OnTheEmbeddedModel):
    """Everything, with what lets JSON come to an end."""

    __test__ = True
    supports_json_mode = True

    @property
    def options(self) -> dict[str, Any]:  # type: ignore[override]  # other tests read it from the class
        """Sampling parameters, and an end for text that has none then."""
        return {"logit_bias": json_that_ends(), "max_tokens": 200}
