"""`tiller serve`: builds every part from the settings, runs them, and takes them down in order.

The heavy parts (torch, transformers, FastAPI) are imported when everything that can fail cheaply has not. It knows
every part by its constructor and none by its insides.
"""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from server.cli.errors import USAGE, CommandFailed
from server.cli.logs import set_up_logging
from server.cli.output import discard_output
from server.config import Settings, SettingsRefused, options
from server.demo import MODEL_DIR, MODEL_NAME, VECTORS_DIR
from server.keys import CLIENT_VARIABLE, MANAGE_VARIABLE, USE_VARIABLE, ApiKeys, KeysRefused, check_exposure

if TYPE_CHECKING:
    from server.cli.banner import Readiness
    from server.engine.engine import BatchingEngine
    from server.text import TextProcessor
    from vectors.store import VectorStore

_log = logging.getLogger(__name__)
_ready_log = logging.getLogger(f"{__name__}.ready")
_ready_log.setLevel(logging.INFO)  # whoever reads a JSON log waits for this line, at whatever level the rest is

DRAIN_SECONDS = 30.0
"""How long requests under way may take to finish after the first signal."""

_PAGE_SIZE = 16


@dataclass(frozen=True, slots=True)
class _Source:
    """Where the model comes from, and the id that it has in the API."""

    location: str
    model_id: str
    is_demo: bool = False

    @property
    def is_local(self) -> bool:
        return Path(self.location).is_dir()


@dataclass(frozen=True, slots=True)
class _Parts:
    store: VectorStore
    engine: BatchingEngine
    text: TextProcessor


def serve(flags: Mapping[str, Any], environ: Mapping[str, str]) -> int:
    """Serve until a signal; returns the exit code. Raises `CommandFailed`."""
    try:
        settings = Settings.from_sources(flags, environ)
        set_up_logging(settings.log_level, as_json=settings.log_json)
        keys = ApiKeys.from_sources(environ, settings.api_key_file)
        _warn_of_variables(environ, keys)
        check_exposure(settings.host, keys, settings.insecure)
    except (SettingsRefused, KeysRefused) as error:
        raise CommandFailed(str(error), USAGE) from None
    source = _source_of(settings)
    from server.cli.listening import bind

    with contextlib.ExitStack() as cleanup:
        bound = cleanup.enter_context(bind(settings.host, settings.port))
        parts = _build(settings, source, cleanup)
        _run(settings, keys, source, parts, bound)
    _log.info("stopped")
    return 0


def _warn_of_variables(environ: Mapping[str, str], keys: ApiKeys) -> None:
    """Name the variables that were meant for a server and do nothing for this one."""
    known = {USE_VARIABLE, MANAGE_VARIABLE, CLIENT_VARIABLE, *(option.variable for option in options())}
    for variable in sorted(environ):
        if variable.startswith("TILLER_") and variable not in known:
            _log.warning("%s is set and is no setting; see tiller serve --help", variable)
    if environ.get(CLIENT_VARIABLE) and keys.is_open:
        _log.warning(
            "%s is the key that clients send; the server's own are %s and %s, and it has none",
            CLIENT_VARIABLE,
            USE_VARIABLE,
            MANAGE_VARIABLE,
        )


def _source_of(settings: Settings) -> _Source:
    source = _named_source(settings)
    if settings.revision is not None and source.is_local:
        raise CommandFailed(
            f"--revision {settings.revision}: only models of the hub have revisions, and {source.location} is a folder",
            USAGE,
        )
    return source


def _named_source(settings: Settings) -> _Source:
    if settings.model is None:
        if not MODEL_DIR.is_dir():
            raise CommandFailed("the embedded model is missing from this installation; name a MODEL to serve")
        return _Source(str(MODEL_DIR), settings.served_model_name or MODEL_NAME, is_demo=True)
    path = Path(settings.model).expanduser()
    if path.is_dir():
        return _Source(str(path), settings.served_model_name or path.resolve().name)
    looks_like_path = settings.model.startswith(("/", ".", "~")) or settings.model.count("/") > 1
    if path.exists() or looks_like_path:
        what = "is a file, not the folder of a model" if path.exists() else "there is no such folder"
        raise CommandFailed(f"MODEL {settings.model}: {what}", USAGE)
    return _Source(settings.model, settings.served_model_name or settings.model)


def _build(settings: Settings, source: _Source, cleanup: contextlib.ExitStack) -> _Parts:
    """Load and start every part; what must be closed is left to `cleanup`."""
    from server.cli.loading import progress_of, quiet_libraries
    from server.cli.shipped import put_shipped_vectors
    from server.engine.model import ModelRefused
    from server.text import TokenizerRefused, load_text
    from vectors.errors import VectorsError
    from vectors.store import VectorStore

    quiet_libraries(is_debugging=settings.log_level == "debug")
    can_draw = source.is_local and not settings.log_json  # a download draws bars of its own
    try:
        store = cleanup.enter_context(VectorStore(settings.data_dir / "vectors"))
        with progress_of(f"loading {source.model_id}", 7, can_draw=can_draw) as begin:
            engine = _load_engine(settings, source, begin)
            cleanup.callback(engine.close)
            begin("reading the tokenizer")
            text = load_text(source.location, revision=settings.revision, chat_template=settings.chat_template)
            if source.is_demo:
                put_shipped_vectors(store, VECTORS_DIR, settings.data_dir, engine.info)
    except (ModelRefused, TokenizerRefused, VectorsError) as error:
        raise CommandFailed(str(error)) from error
    except OSError as error:
        raise CommandFailed(f"{error.filename or settings.data_dir}: {error.strerror or error}") from error
    return _Parts(store, engine, text)


def _load_engine(settings: Settings, source: _Source, begin: Callable[[str], None]) -> BatchingEngine:
    from server.cli.memory import free_bytes
    from server.engine.engine import BatchingEngine, EngineSettings, num_pages_for
    from server.engine.model import ModelRefused, load_model

    model = load_model(
        source.location,
        model_id=source.model_id,
        device=settings.device,
        dtype=settings.dtype,
        revision=settings.revision,
        adapter=settings.adapter,
        max_model_len=settings.max_model_len,
        on_progress=begin,
    )
    begin("reserving the KV cache")
    num_pages = num_pages_for(
        model,
        kv_cache_gib=settings.kv_cache_gib,
        free_bytes=free_bytes(model.device),
        max_running=settings.max_running,
        page_size=_PAGE_SIZE,
    )
    limits = EngineSettings(
        num_pages=num_pages,
        page_size=_PAGE_SIZE,
        max_running=settings.max_running,
        max_batch_tokens=settings.max_batch_tokens,
        max_queue=settings.max_queue,
    )
    try:
        return BatchingEngine(model, limits).start()
    except (MemoryError, RuntimeError) as error:
        raise ModelRefused(f"the KV cache cannot be reserved: {error}; give a smaller --kv-cache-gib") from error


def _run(settings: Settings, keys: ApiKeys, source: _Source, parts: _Parts, bound: socket.socket) -> None:
    from server.app import build_app
    from server.cli.listening import DrainingServer, cannot_listen, url_of

    def announce() -> None:
        readiness = _readiness(url_of(bound), settings, keys, source, parts)
        if settings.log_json:
            _ready_log.info("ready", extra={"fields": readiness.fields()})
            return
        try:
            print("\n".join(readiness.lines()), flush=True)
        except OSError as error:  # whoever read it is gone; the requests still come
            discard_output()
            _log.warning("ready at %s, which standard output does not take: %s", readiness.url, error.strerror)

    def drain() -> None:
        if not parts.engine.drain(DRAIN_SECONDS):
            _log.warning("some requests took longer than %g s and were aborted", DRAIN_SECONDS)
        parts.engine.close()

    app = build_app(settings, parts.engine, parts.text, parts.store, keys)
    server = DrainingServer(app, on_ready=announce, drain=drain)
    try:
        server.run_on(bound)
    except OSError as error:
        raise cannot_listen(settings.host, settings.port, error) from error


def _readiness(url: str, settings: Settings, keys: ApiKeys, source: _Source, parts: _Parts) -> Readiness:
    from server.cli.banner import Readiness

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
