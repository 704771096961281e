"""From settings to a running engine: where the model comes from, loading it, and why it cannot be loaded.

The same for `tiller serve` and for training in this process. Importing it is cheap: heavy parts are imported by the
first call that needs them.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from server.cli.errors import USAGE, CommandFailed
from server.cli.signals import ending_at_once
from server.config import Settings
from server.demo import MODEL_DIR, MODEL_NAME

if TYPE_CHECKING:
    from server.engine.engine import BatchingEngine
    from server.engine.protocol import Engine
    from server.text import TextProcessor

_log = logging.getLogger(__name__)

_PAGE_SIZE = 16
_NUM_PHASES = 6


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where the model comes from, and its id in the API."""

    location: str
    model_id: str
    is_demo: bool = False

    @property
    def is_local(self) -> bool:
        """True for a folder, False for a hub id."""
        return Path(self.location).is_dir()


def source_of(settings: Settings) -> ModelSource:
    """The model that the settings name, not yet read. Raises `CommandFailed` if it cannot be a model."""
    source = _named_source(settings)
    if settings.revision is not None and source.is_local:
        raise CommandFailed(
            f"--revision {settings.revision}: only hub models have revisions, but {source.location} is a folder",
            USAGE,
        )
    return source


def _named_source(settings: Settings) -> ModelSource:
    if settings.model is None:
        if not MODEL_DIR.is_dir():
            raise CommandFailed("this installation does not include the embedded model; name a MODEL")
        return ModelSource(str(MODEL_DIR), settings.served_model_name or MODEL_NAME, is_demo=True)
    path = Path(settings.model).expanduser()
    if path.is_dir():
        return ModelSource(str(path), settings.served_model_name or path.resolve().name)
    looks_like_path = settings.model.startswith(("/", ".", "~")) or settings.model.count("/") > 1
    if path.exists() or looks_like_path:
        if path.suffix == ".gguf":
            from server.engine.checkpoint_files import gguf_reason

            raise CommandFailed(f"MODEL {gguf_reason(settings.model, path.name)}", USAGE)
        what = "expected a folder, got a file" if path.exists() else "no such folder"
        raise CommandFailed(f"MODEL {settings.model}: {what}", USAGE)
    return ModelSource(settings.model, settings.served_model_name or settings.model)


@contextlib.contextmanager
def readable_failures(settings: Settings) -> Iterator[None]:
    """Turn what loading raises into `CommandFailed`."""
    from server.engine.refusal import ModelRefused
    from server.text import TokenizerRefused
    from vectors.errors import VectorsError

    try:
        yield
    except (ModelRefused, TokenizerRefused, VectorsError) as error:
        raise CommandFailed(str(error)) from error
    except OSError as error:
        raise CommandFailed(f"{error.filename or settings.data_dir}: {error.strerror or error}") from error


@contextlib.contextmanager
def loading(settings: Settings, source: ModelSource) -> Iterator[Callable[[str], None]]:
    """Show that the model is being loaded; yields a function to call with each phase as it begins.

    Within, a signal ends the process at once: libraries would swallow an exception, or print it.
    """
    from server.cli.loading.progress import progress_of, quiet_libraries

    quiet_libraries(is_debugging=settings.log_level == "debug")
    can_draw = source.is_local and not settings.log_json  # downloads draw their own bars
    with ending_at_once(), progress_of(f"loading {source.model_id}", _NUM_PHASES, can_draw=can_draw) as begin:
        yield begin


def start_engine(
    settings: Settings, source: ModelSource, cleanup: contextlib.ExitStack, begin: Callable[[str], None]
) -> tuple[Engine, TextProcessor]:
    """Load the model and its tokenizer and start the engine, which `cleanup` closes.

    Raises `ModelRefused`, `TokenizerRefused` and `OSError`; see `readable_failures`.
    """
    from server.text import load_text

    engine = _load_engine(settings, source, begin)
    cleanup.callback(engine.close)
    begin("reading the tokenizer")
    text = load_text(source.location, revision=settings.revision, chat_template=settings.chat_template)
    _warn_of_tokens(text, engine.info.vocab_size)
    return engine, text


def _warn_of_tokens(text: TextProcessor, vocab_size: int) -> None:
    """Say which tokens of the tokenizer the model does not have: the engine refuses prompts with them."""
    beyond = text.tokens_beyond(vocab_size)
    if beyond:
        _log.warning(
            "the tokenizer has %d tokens that the model's vocabulary of %d lacks (%s): prompts with them are refused",
            len(beyond),
            vocab_size,
            ", ".join(map(repr, beyond[:4])),
        )


def _load_engine(settings: Settings, source: ModelSource, begin: Callable[[str], None]) -> Engine:
    if settings.engine == "vllm":
        from server.cli.loading.vllm_engine import load_vllm

        return load_vllm(settings, source.location, source.model_id, begin)
    if settings.engine_arg:
        raise CommandFailed("--engine-arg is an option of --engine vllm", USAGE)
    return _load_batching(settings, source, begin)


def _load_batching(settings: Settings, source: ModelSource, begin: Callable[[str], None]) -> BatchingEngine:
    from server.engine.engine import BatchingEngine, EngineSettings
    from server.engine.free_memory import free_bytes
    from server.engine.memory import plan_memory
    from server.engine.model import load_model
    from server.engine.refusal import ModelRefused

    model = load_model(
        source.location,
        model_id=source.model_id,
        device=settings.device,
        dtype=settings.dtype,
        kernels=settings.kernels,
        revision=settings.revision,
        adapter=settings.adapter,
        max_model_len=settings.max_model_len,
        on_progress=begin,
    )
    begin("reserving the KV cache")
    plan = plan_memory(
        model,
        kv_cache_gib=settings.kv_cache_gib,
        free_bytes=free_bytes(model.device),
        max_running=settings.max_running,
        max_batch_tokens=settings.max_batch_tokens,
        page_size=_PAGE_SIZE,
    )
    limits = EngineSettings(
        num_pages=plan.num_pages,
        num_window_pages=plan.num_window_pages,
        num_snapshots=plan.num_snapshots,
        page_size=_PAGE_SIZE,
        max_running=settings.max_running,
        max_batch_tokens=settings.max_batch_tokens,
        max_queue=settings.max_queue,
        background_share=settings.background_share,
    )
    try:
        return BatchingEngine(model, limits).start()
    except (MemoryError, RuntimeError) as error:
        raise ModelRefused(f"the KV cache cannot be reserved: {error}; use a smaller --kv-cache-gib") from error
