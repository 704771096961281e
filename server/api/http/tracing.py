"""One OpenTelemetry span per request, joined to the caller's trace (W3C `traceparent`).

Attributes follow the semantic conventions for HTTP servers and generative AI. A span never holds prompts, answers,
keys, query strings or error messages (unlike the spans of FastAPI's own instrumentation). It needs the extra `otel`,
so it is imported only if traces are enabled.
"""

from __future__ import annotations

from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, format_trace_id
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api.http.observed import Observed, observed

_UNTRACED = frozenset({"/health", "/ready", "/version", "/metrics"})
"""Paths that monitoring requests every few seconds."""

_OPERATIONS = {"/v1/chat/completions": "chat", "/v1/completions": "text_completion", "/v1/responses": "chat"}
"""Operation names of routes in the conventions for generative AI."""

_propagator = TraceContextTextMapPropagator()


class TracingLayer:
    """Goes inside the access layer, whose log line contains the trace's id."""

    def __init__(self, app: ASGIApp, tracer: Tracer) -> None:
        self._app = app
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on within a span."""
        if scope["type"] != "http" or scope["path"] in _UNTRACED:
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        carrier = {name: headers[name] for name in ("traceparent", "tracestate") if name in headers}
        parent = _propagator.extract(carrier, context=Context())
        span = self._tracer.start_span(scope["method"], context=parent, kind=SpanKind.SERVER)
        state = scope.setdefault("state", {})
        state["log_fields"] = {"trace_id": format_trace_id(span.get_span_context().trace_id)}

        async def send_noting_status(message: Message) -> None:
            if message["type"] == "http.response.start":
                _note_status(span, message["status"])
            await send(message)

        try:
            await self._app(scope, receive, send_noting_status)
        except BaseException as error:
            _note_failure(span, "client_left" if isinstance(error, ClientDisconnect) else type(error).__qualname__)
            raise
        finally:
            _describe(span, scope)
            _describe_generation(span, observed(), _OPERATIONS.get(scope["path"]))
            span.end()


def _note_status(span: Span, status: int) -> None:
    span.set_attribute("http.response.status_code", status)
    if status >= 500:
        _note_failure(span, str(status))


def _note_failure(span: Span, kind: str) -> None:
    span.set_attribute("error.type", kind)
    span.set_status(Status(StatusCode.ERROR))


def _describe(span: Span, scope: Scope) -> None:
    route = scope.get("route")  # the router leaves it there
    path = getattr(route, "path", None) if isinstance(route, BaseRoute) else None
    if path is not None:
        span.update_name(f"{scope['method']} {path}")
        span.set_attribute("http.route", path)
    span.set_attribute("http.request.method", scope["method"])
    span.set_attribute("url.scheme", scope.get("scheme", "http"))
    span.set_attribute("url.path", scope["path"][:500])
    span.set_attribute("tiller.request_id", scope["state"].get("request_id", ""))


def _describe_generation(span: Span, record: Observed, operation: str | None) -> None:
    if not record.model:
        return
    if operation is not None:
        span.set_attribute("gen_ai.operation.name", operation)
    span.set_attribute("gen_ai.provider.name", "tiller")
    span.set_attribute("gen_ai.request.model", record.model)
    span.set_attribute("gen_ai.response.model", record.model)
    span.set_attribute("gen_ai.usage.input_tokens", record.num_prompt_tokens)
    span.set_attribute("gen_ai.usage.output_tokens", record.num_generated_tokens)
    span.set_attribute("gen_ai.response.finish_reasons", record.finish_reasons)
    span.set_attribute("tiller.steering.vectors", record.vectors)
    if record.first_token_seconds is not None:
        span.set_attribute("gen_ai.response.time_to_first_chunk", record.first_token_seconds)
