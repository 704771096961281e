"""Spans as a collector gets them: one a request, joined to the caller's trace, with counts, never with text or keys."""

from __future__ import annotations

import contextlib
import http.server
import logging
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from server.cli.errors import CommandFailed
from server.cli.serve.tracing import start_tracing
from server.engine.engine import BatchingEngine
from server.keys import ApiKeys
from tests.server.api.serving import Server, eventually, serving, vector

trace_service = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
pytest.importorskip("opentelemetry.exporter.otlp.proto.http")

KEY, SECRET = "a-secret-key", "words of a user"
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": SECRET}], "max_tokens": 5, "ignore_eos": True}
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


class Collector(http.server.ThreadingHTTPServer):
    """Takes what an OTLP exporter sends."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Taking)
        self.paths: list[str] = []
        self.bodies: list[bytes] = []

    @property
    def url(self) -> str:
        """Its base address."""
        return f"http://127.0.0.1:{self.server_port}"

    def resources(self) -> list[Any]:
        """What came, decoded."""
        requests = [trace_service.ExportTraceServiceRequest.FromString(body) for body in self.bodies]
        return [resource for request in requests for resource in request.resource_spans]

    def spans(self) -> list[Any]:
        """The spans that came, in the order in which they began."""
        spans = [span for resource in self.resources() for scope in resource.scope_spans for span in scope.spans]
        return sorted(spans, key=lambda span: int(span.start_time_unix_nano))


class _Taking(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        assert isinstance(self.server, Collector)
        self.server.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.paths.append(self.path)
        self.send_response(200)
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        """Says nothing."""


@pytest.fixture
def collector() -> Iterator[Collector]:
    """A collector on a free port."""
    with Collector() as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@contextlib.contextmanager
def traced(folder: Path, collector: Collector, **parts: Any) -> Iterator[Server]:
    """A server that traces; at the end everything has been sent."""
    with contextlib.ExitStack() as cleanup:
        tracer = start_tracing(collector.url, {}, cleanup)
        with serving(folder, tracer=tracer, **parts) as server:
            server.store.put("calm", vector(1))
            yield server


def attributes(span: Any) -> dict[str, Any]:
    """A span's attributes as Python values."""

    def plain(value: Any) -> Any:
        kind = value.WhichOneof("value")
        return [plain(item) for item in value.array_value.values] if kind == "array_value" else getattr(value, kind)

    return {attribute.key: plain(attribute.value) for attribute in span.attributes}


def test_a_request_is_a_span_of_its_caller_s_trace(tmp_path: Path, collector: Collector) -> None:
    with traced(tmp_path, collector, keys=ApiKeys(use=[KEY]), key=KEY) as server:
        headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "x-request-id": "mine-1"}
        body = CHAT | {"n": 2, "steering": [{"vector": "calm"}]}
        usage = server.http.post("/v1/chat/completions", json=body, headers=headers).json()["usage"]
    (span,) = collector.spans()
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, PARENT)
    assert (span.name, span.kind, span.status.code) == ("POST /v1/chat/completions", 2, 0)
    found = attributes(span)
    assert found.pop("gen_ai.response.time_to_first_chunk") > 0
    assert found == {
        "http.request.method": "POST",
        "http.route": "/v1/chat/completions",
        "http.response.status_code": 200,
        "url.path": "/v1/chat/completions",
        "url.scheme": "http",
        "tiller.request_id": "mine-1",
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "tiller",
        "gen_ai.request.model": "tiny",
        "gen_ai.response.model": "tiny",
        "gen_ai.usage.input_tokens": usage["prompt_tokens"],
        "gen_ai.usage.output_tokens": usage["completion_tokens"],
        "gen_ai.response.finish_reasons": ["length", "length"],
        "tiller.steering.vectors": ["calm"],
    }
    (resource,) = collector.resources()
    assert {item.key: item.value.string_value for item in resource.resource.attributes}["service.name"] == "tiller"
    assert collector.paths == ["/v1/traces"]
    assert KEY.encode() not in collector.bodies[0]
    assert SECRET.encode() not in collector.bodies[0]


def test_streams_errors_and_strangers_are_spans_too(tmp_path: Path, collector: Collector) -> None:
    with traced(tmp_path, collector, keys=ApiKeys(use=[KEY]), key=KEY) as server:
        prompts = {"prompt": ["ab", "ab"], "max_tokens": 3, "stream": True, "ignore_eos": True}
        server.http.post("/v1/completions?api_key=hidden", json=prompts)
        server.http.post("/v1/completions", json={"prompt": SECRET, "surprise": SECRET})
        server.http.get("/v1/steering/vectors/calm", headers={"Authorization": "Bearer wrong"})
        server.http.get("/health")
        server.http.get("/metrics")
    stream, wrong, stranger = map(attributes, collector.spans())
    assert (stream["gen_ai.usage.input_tokens"], stream["gen_ai.usage.output_tokens"]) == (4, 6)
    assert stream["gen_ai.operation.name"] == "text_completion"
    assert (wrong["http.response.status_code"], "gen_ai.request.model" in wrong) == (400, False)
    assert stranger["http.response.status_code"] == 401
    assert stranger["http.route"] == "/v1/steering/vectors/{name}"
    sent = b"".join(collector.bodies)
    assert not [secret for secret in (KEY, SECRET, "hidden", "wrong") if secret.encode() in sent]


class HeldEngine(BatchingEngine):
    """Never begins."""

    def start(self) -> HeldEngine:
        """Nothing."""
        return self


def test_who_leaves_and_what_takes_too_long_are_errors(
    tmp_path: Path, collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tiller.access")

    def logged() -> list[dict[str, Any]]:
        """The fields of the access log's lines."""
        return [record.fields for record in caplog.records if record.name == "tiller.access"]  # type: ignore[attr-defined]

    with traced(tmp_path, collector, engine_class=HeldEngine, request_timeout=0.2) as server:
        assert server.http.post("/v1/chat/completions", json=CHAT).status_code == 504
        eventually(lambda: len(logged()) == 1)
        with server.http.stream("POST", "/v1/chat/completions", json=CHAT | {"stream": True}):
            pass
        eventually(lambda: len(logged()) == 2)
    late, left = collector.spans()
    assert (late.status.code, attributes(late)["error.type"]) == (2, "504")
    assert (left.status.code, attributes(left)["error.type"]) == (2, "client_left")
    assert [fields["trace_id"] for fields in logged()] == [late.trace_id.hex(), left.trace_id.hex()]
    assert [fields["status"] for fields in logged()] == [504, 499]


def test_the_standard_variables_are_honoured(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_SERVICE_NAME": "ours"}
    for name, text in environ.items():
        monkeypatch.setenv(name, text)
    with contextlib.ExitStack() as cleanup:
        tracer = start_tracing(None, environ, cleanup)
        assert tracer is not None
        tracer.start_span("one").end()
    (resource,) = collector.resources()
    assert {item.key: item.value.string_value for item in resource.resource.attributes}["service.name"] == "ours"
    assert collector.paths == ["/v1/traces"]


def test_without_an_address_nothing_is_traced() -> None:
    assert start_tracing(None, {}, contextlib.ExitStack()) is None


def test_without_the_extra_the_flag_is_refused_and_the_variable_warned_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)  # as where it is not installed
    with pytest.raises(CommandFailed, match=r"--otel-endpoint needs the extra otel"):
        start_tracing("http://127.0.0.1:4318", {}, contextlib.ExitStack())
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}
    assert start_tracing(None, environ, contextlib.ExitStack()) is None
    assert "needs the extra otel" in caplog.text
