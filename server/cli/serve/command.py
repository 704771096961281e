"""`tiller serve`: builds every part from the settings, runs them, and takes them down in order.

The heavy parts (torch, transformers, FastAPI) are imported only after everything that can fail cheaply has succeeded.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from server.cli.errors import USAGE, CommandFailed
from server.cli.loading.engine import ModelSource, loading, readable_failures, source_of, start_engine
from server.cli.logs import set_up_logging
from server.cli.output import discard_output
from server.cli.serve.tracing import start_tracing
from server.config import Settings, SettingsRefused, options
from server.demo import VECTORS_DIR
from server.keys import (
    CLIENT_VARIABLE,
    JUDGE_VARIABLE,
    MANAGE_VARIABLE,
    USE_VARIABLE,
    ApiKeys,
    KeysRefused,
    check_exposure,
    check_origins,
)

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

    from server.cli.serve.banner import Readiness
    from server.engine.protocol import Engine
    from server.jobs.worker import JobWorker
    from server.response_store import ResponseStore
    from server.steering.norms import TypicalNorms
    from server.text import TextProcessor
    from vectors.store import VectorStore

_log = logging.getLogger(__name__)
_ready_log = logging.getLogger(f"{__name__}.ready")
_ready_log.setLevel(logging.INFO)  # readers of a JSON log wait for this line, whatever the log level

BROKEN = 70
"""The exit status of a server that has stopped working (`EX_SOFTWARE` of BSD's sysexits)."""

_SWITCH_SECONDS = 0.0002
"""After how long a thread that computes in Python lets another one run.

A step of the engine lets the interpreter go several times, and waits so long each time while another thread computes.
With Python's 5 ms, steps took three times as long while a schema was read; with this they take as long as alone.
"""

_LEAST_SECONDS_FOR_JOBS = 2.0
"""Seconds in which a training job stops when it is told to, unless something is wrong."""


@dataclass(frozen=True, slots=True)
class _Parts:
    store: VectorStore
    engine: Engine
    text: TextProcessor
    jobs: JobWorker
    responses: ResponseStore | None
    norms: TypicalNorms


def serve(flags: Mapping[str, Any], environ: Mapping[str, str]) -> int:
    """Serve until a signal; returns the exit code. Raises `CommandFailed`."""
    try:
        settings = Settings.from_sources(flags, environ)
        set_up_logging(settings.log_level, as_json=settings.log_json)
        keys = ApiKeys.from_sources(environ, settings.api_key_file)
        _warn_of_variables(environ, keys)
        check_exposure(settings.host, keys, settings.insecure)
        check_origins(settings.cors_origin, keys, settings.insecure)
    except (SettingsRefused, KeysRefused) as error:
        raise CommandFailed(str(error), USAGE) from None
    source = source_of(settings)
    from server.cli.serve.listening import bind

    with contextlib.ExitStack() as cleanup:
        bound = cleanup.enter_context(bind(settings.host, settings.port))
        tracer = start_tracing(settings.otel_endpoint, environ, cleanup)
        parts = _build(settings, source, cleanup)
        status = _run(settings, keys, source, parts, bound, tracer)
    _log.info("stopped")
    if not parts.engine.health().is_alive:  # a step that hangs would hold up the end of the interpreter too
        logging.shutdown()
        os._exit(status)
    return status


def _warn_of_variables(environ: Mapping[str, str], keys: ApiKeys) -> None:
    """Warn about variables that were meant for a server but do nothing for this one."""
    known = {USE_VARIABLE, MANAGE_VARIABLE, CLIENT_VARIABLE, JUDGE_VARIABLE, *(option.variable for option in options())}
    for variable in sorted(environ):
        if variable.startswith("TILLER_") and variable not in known:
            _log.warning("%s is set but is not a setting; see tiller serve --help", variable)
    if environ.get(CLIENT_VARIABLE) and keys.is_open:
        _log.warning(
            "%s is the key that clients send; this server has no keys, which %s and %s set",
            CLIENT_VARIABLE,
            USE_VARIABLE,
            MANAGE_VARIABLE,
        )


def _build(settings: Settings, source: ModelSource, cleanup: contextlib.ExitStack) -> _Parts:
    """Load and start every part; `cleanup` closes them."""
    from server.shipped import put_shipped_vectors
    from server.typical_norms import typical_norms
    from vectors.store import VectorStore

    with readable_failures(settings):
        store = cleanup.enter_context(VectorStore(settings.data_dir / "vectors"))
        with loading(settings, source) as begin:
            engine, text = start_engine(settings, source, cleanup, begin)
            if source.is_demo:
                put_shipped_vectors(store, VECTORS_DIR, settings.data_dir, engine.info)
            jobs = _start_jobs(settings, engine, text, store, cleanup)
            responses = _open_responses(settings, cleanup)
            norms = typical_norms(engine, text, settings.data_dir)
    return _Parts(store, engine, text, jobs, responses, norms)


def _open_responses(settings: Settings, cleanup: contextlib.ExitStack) -> ResponseStore | None:
    """The stored responses of the data directory, if any are to be stored."""
    if settings.max_stored_responses == 0:
        return None
    from server.response_store import ResponseStore

    path = settings.data_dir / "responses.sqlite3"
    return cleanup.enter_context(ResponseStore(path, max_count=settings.max_stored_responses))


def _start_jobs(
    settings: Settings,
    engine: Engine,
    text: TextProcessor,
    store: VectorStore,
    cleanup: contextlib.ExitStack,
) -> JobWorker:
    """Continue the training jobs of the data directory; `cleanup` stops them before the parts they use."""
    from server.jobs.database import JobDatabase
    from server.jobs.files import FileStore
    from server.jobs.worker import JobWorker
    from server.training.steering_trainer import SteeringTrainer

    database = JobDatabase(settings.data_dir / "jobs.sqlite3")
    cleanup.callback(database.close)
    files = FileStore(settings.data_dir / "files", database)
    jobs = JobWorker(database, files, store, SteeringTrainer(engine, text, store)).start()
    cleanup.callback(jobs.close, _LEAST_SECONDS_FOR_JOBS)
    return jobs


def _run(
    settings: Settings,
    keys: ApiKeys,
    source: ModelSource,
    parts: _Parts,
    bound: socket.socket,
    tracer: Tracer | None,
) -> int:
    """Serve until the end; returns the exit status."""
    from server.app import build_app
    from server.cli.serve.connections import timed_protocol
    from server.cli.serve.listening import DrainingServer, cannot_listen, url_of
    from server.watchdog import Watchdog

    def announce() -> None:
        readiness = _readiness(url_of(bound), settings, keys, source, parts)
        if settings.log_json:
            _ready_log.info("ready", extra={"fields": readiness.fields()})
            return
        try:
            print("\n".join(readiness.lines()), flush=True)
        except OSError as error:  # its reader is gone, but requests still come
            discard_output()
            _log.warning("ready at %s (cannot write to standard output: %s)", readiness.url, error.strerror)

    def drain(seconds: float) -> None:
        trouble = watchdog.trouble()
        if trouble is not None and trouble.is_lasting:
            seconds = 0.0  # nothing will finish
        deadline = time.monotonic() + seconds
        parts.jobs.stop()  # first: a job that stops because the engine does would have failed
        _log.warning("finishing running requests; a second signal stops at once")
        if not parts.engine.drain(seconds):
            _log.warning("some requests took longer than %g s and were aborted", seconds)
        if not parts.jobs.close(max(_LEAST_SECONDS_FOR_JOBS, deadline - time.monotonic())):
            _log.warning("the training job did not stop in time; the next start runs it again")
        parts.engine.close()

    def end_broken(reason: str) -> None:
        if settings.on_failure == "stay":
            _log.critical("%s; the server stays, as --on-failure says", reason)
        elif server.fail(BROKEN):
            _log.critical("%s; the server ends with status %d", reason, BROKEN)

    threads = {"training jobs": lambda: parts.jobs.is_broken}
    watchdog = Watchdog(parts.engine, step_timeout=settings.step_timeout, others=threads)
    app = build_app(
        settings,
        parts.engine,
        parts.text,
        parts.store,
        keys,
        parts.jobs,
        tracer,
        parts.responses,
        watchdog,
        parts.norms,
    )
    sys.setswitchinterval(_SWITCH_SECONDS)
    gc.collect()
    gc.freeze()  # what start-up made stays: each full collection would stop every thread to look at all of it
    protocol = timed_protocol(settings.body_timeout, settings.send_timeout)
    server = DrainingServer(
        app, protocol=protocol, on_ready=announce, drain=drain, drain_seconds=settings.drain_timeout
    )
    watchdog.start(end_broken)
    try:
        return server.run_on(bound)
    except OSError as error:
        raise cannot_listen(settings.host, settings.port, error) from error
    finally:
        watchdog.close()


def _readiness(url: str, settings: Settings, keys: ApiKeys, source: ModelSource, parts: _Parts) -> Readiness:
    from server.cli.serve.banner import Readiness

    names = parts.store.names()
    return Readiness(
        url=url,
        model=parts.engine.info,
        stats=parts.engine.stats(),
        is_demo=source.is_demo,
        has_chat_template=parts.text.has_chat_template,
        num_vectors=len(names),
        steers_with=_fitting_vector(parts, names),
        needs_key=not keys.is_open,
        is_insecure=settings.insecure,
    )


def _fitting_vector(parts: _Parts, names: list[str]) -> str | None:
    """The first vector of the registry that the model can be steered with."""
    from vectors.errors import VectorsError

    info = parts.engine.info
    for name in names:
        try:
            parts.store.get(name).vector.fit(info.num_layers, info.hidden_size, info.sites)
        except VectorsError as error:
            _log.debug("vector %s does not fit: %s", name, error)
            continue
        return name
    return None
