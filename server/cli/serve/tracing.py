"""Sends traces to an OTLP collector over HTTP. Needs the extra `otel`.

Everything else of the exporter (headers, compression, certificates, sampling, the service's name) is set by
OpenTelemetry's own `OTEL_…` variables, which its SDK reads.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

from server import __version__
from server.cli.errors import USAGE, CommandFailed

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

_log = logging.getLogger(__name__)

ENDPOINT_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


def start_tracing(endpoint: str | None, environ: Mapping[str, str], cleanup: contextlib.ExitStack) -> Tracer | None:
    """A tracer for the collector at `endpoint`, or else the one in OpenTelemetry's variables; None without either.

    `cleanup` sends what is left. Without the extra, `endpoint` raises `CommandFailed`; the variables, which may be
    meant for other programs, only give a warning.
    """
    variables = [name for name in ENDPOINT_VARIABLES if environ.get(name)]
    if endpoint is None and not variables:
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        if endpoint is None:
            _log.warning("%s is set; tracing needs the extra otel: pip install 'tiller[otel]'", variables[0])
            return None
        raise CommandFailed("--otel-endpoint needs the extra otel: pip install 'tiller[otel]'", USAGE) from None
    ours = Resource.create({"service.name": "tiller", "service.version": __version__})
    provider = TracerProvider(resource=ours.merge(OTELResourceDetector().detect()), shutdown_on_exit=False)
    exporter = OTLPSpanExporter(endpoint=None if endpoint is None else f"{endpoint}/v1/traces")
    provider.add_span_processor(BatchSpanProcessor(exporter))
    cleanup.callback(provider.shutdown)
    return provider.get_tracer("tiller", __version__)
