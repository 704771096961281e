"""build_app: assembles the HTTP application. The caller closes the parts that it passes in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import Depends, FastAPI

from server import __version__
from server.api.about import docs, health, models, tokens
from server.api.chat import routes as chat
from server.api.completions import routes as completions
from server.api.decisions import routes as decisions
from server.api.http import failures
from server.api.http.cors import CorsLayer
from server.api.http.limiting import limit_rate
from server.api.http.metrics import Metrics
from server.api.http.paths import PathLayer
from server.api.http.rate_limits import RateLimits
from server.api.http.request_log import RequestLogLayer
from server.api.http.services import Services
from server.api.http.timeouts import TimeoutLayer
from server.api.registry import routes as registry
from server.api.responses import routes as responses
from server.api.streams import routes as streams
from server.api.training import files
from server.api.training import jobs as training_jobs
from server.config import Settings
from server.engine.protocol import Engine
from server.jobs.worker import JobWorker
from server.keys import ApiKeys
from server.page.routes import page_router
from server.response_store import ResponseStore
from server.steering.dose import DosePolicy
from server.steering.norms import TypicalNorms
from server.text import TextProcessor
from server.watchdog import Watchdog
from vectors.confined import Limits
from vectors.store import VectorStore

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

_LIMITED = (chat, completions, responses, decisions, tokens)
_OTHERS = (streams, models, registry, files, training_jobs, health)


def build_app(
    settings: Settings,
    engine: Engine,
    text: TextProcessor,
    store: VectorStore,
    keys: ApiKeys | None = None,
    jobs: JobWorker | None = None,
    tracer: Tracer | None = None,
    kept_responses: ResponseStore | None = None,
    watchdog: Watchdog | None = None,
    norms: TypicalNorms | None = None,
) -> FastAPI:
    """The application. Without `keys` it is open, without `jobs` it does not train, without `tracer` it does not trace.

    Without `kept_responses` it stores no responses. It refuses new work as soon as the engine does. Without a started
    `watchdog` its health is looked at only when it is asked for. Without `norms` answers tell no relative dose.
    """
    metrics = Metrics(engine, has_probes=settings.probe_metrics)
    app = FastAPI(
        title="tiller", version=__version__, docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False
    )
    vocab_size = engine.info.vocab_size
    ends = engine.info.eos_token_ids | {token_id for token_id in text.end_token_ids if token_id < vocab_size}
    limits = Limits(settings.grammar_mib, settings.grammar_seconds)
    grammars = text.grammar_compiler(vocab_size, ends, limits)
    grammars.prepare()
    app.state.services = Services(
        settings=settings,
        engine=engine,
        text=text,
        store=store,
        keys=keys if keys is not None else ApiKeys(),
        metrics=metrics,
        grammars=grammars,
        watchdog=watchdog if watchdog is not None else Watchdog(engine, step_timeout=settings.step_timeout),
        jobs=jobs,
        rate_limits=RateLimits(settings.rate_limit) if settings.rate_limit is not None else None,
        token_limits=RateLimits(settings.token_limit, unit="tokens") if settings.token_limit is not None else None,
        responses=kept_responses,
        dose=DosePolicy(settings.dose_limit, {} if norms is None else norms.means, engine.info.fingerprint),
    )
    for module in _LIMITED:
        app.include_router(module.router, dependencies=[Depends(limit_rate)])
    for module in _OTHERS:
        app.include_router(module.router)
    app.include_router(docs.router_for([module.router for module in (*_LIMITED, *_OTHERS)]))
    if not settings.no_page:
        app.include_router(page_router())
    failures.install(app)
    _add_layers(app, settings, metrics, tracer)
    return app


def _add_layers(app: FastAPI, settings: Settings, metrics: Metrics, tracer: Tracer | None) -> None:
    """The layers around every route, innermost first."""
    app.add_middleware(TimeoutLayer, request_seconds=settings.request_timeout, body_seconds=settings.body_timeout)
    if tracer is not None:
        from server.api.http.tracing import TracingLayer

        app.add_middleware(TracingLayer, tracer=tracer)
    app.add_middleware(RequestLogLayer, metrics=metrics)
    app.add_middleware(PathLayer)
    if settings.cors_origin:
        app.add_middleware(CorsLayer, origins=settings.cors_origin)
