"""build_app: the HTTP application from built parts. It owns none of them: whoever built them closes them."""

from __future__ import annotations

from fastapi import FastAPI

from server import __version__
from server.api import chat, completions, failures, files, fine_tuning, models, operations, vectors
from server.api.access import AccessLayer
from server.api.metrics import Metrics
from server.api.services import Services
from server.config import Settings
from server.engine.protocol import Engine
from server.jobs.worker import JobWorker
from server.keys import ApiKeys
from server.text import TextProcessor
from vectors.store import VectorStore


def build_app(
    settings: Settings,
    engine: Engine,
    text: TextProcessor,
    store: VectorStore,
    keys: ApiKeys | None = None,
    jobs: JobWorker | None = None,
) -> FastAPI:
    """The application; without `keys` it is open, without `jobs` it trains nothing.

    It refuses new work as soon as the engine does.
    """
    metrics = Metrics(engine)
    app = FastAPI(
        title="tiller", version=__version__, docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False
    )
    app.state.services = Services(
        settings=settings,
        engine=engine,
        text=text,
        store=store,
        keys=keys if keys is not None else ApiKeys(),
        metrics=metrics,
        jobs=jobs,
    )
    for module in (chat, completions, models, vectors, files, fine_tuning, operations):
        app.include_router(module.router)
    failures.install(app)
    app.add_middleware(AccessLayer, metrics=metrics)
    return app
