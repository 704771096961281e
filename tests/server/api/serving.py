"""A real server for tests: a tiny seeded model, the real engine, registry and application, a real uvicorn."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import httpx
import openai
import torch
import uvicorn
from fastapi import FastAPI
from opentelemetry.trace import Tracer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from server.app import build_app
from server.config import Settings
from server.engine.engine import BatchingEngine, EngineSettings
from server.engine.model import LoadedModel, prepare_model
from server.jobs.database import JobDatabase
from server.jobs.files import FileStore
from server.jobs.trainer import Trainer
from server.jobs.worker import JobWorker
from server.keys import ApiKeys
from server.response_store import ResponseStore
from server.steering.norms import TypicalNorms
from server.text import TextProcessor
from server.training.steering_trainer import SteeringTrainer
from vectors.store import VectorStore
from vectors.vector import SteeringVector

HIDDEN = 32
LAYERS = 3
CONTEXT = 512
MODEL = "tiny"

LOCAL = bytes([127, 0, 0, 1]).hex()
"""The owner of requests of a client on this machine to a server without keys."""

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['content'] == 'forbidden' %}{{ raise_exception('this word is forbidden') }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' + mood|default('') }}{% endif %}"
)


def byte_tokenizer(chat_template: str | None = CHAT_TEMPLATE) -> PreTrainedTokenizerFast:
    """One token a byte, and ChatML's markers."""
    specials = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: number for number, symbol in enumerate([*specials, *alphabet])}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        additional_special_tokens=["<|im_start|>"],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = chat_template
    return tokenizer


def tiny_module(num_layers: int = LAYERS) -> LlamaForCausalLM:
    """A seeded Llama over bytes; its end token is `<|im_end|>`."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=259,
        hidden_size=HIDDEN,
        intermediate_size=48,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        initializer_range=0.25,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
    )
    module = LlamaForCausalLM(config)
    module.eval()
    with torch.no_grad():
        module.lm_head.weight[:3] = 0.0  # it hardly ever ends by itself, so that tests know how long answers are
    return module


def tiny_model() -> LoadedModel:
    """The same, ready for an engine."""
    return prepare_model(tiny_module(), model_id=MODEL)


_free_models: list[LoadedModel] = []


@contextlib.contextmanager
def _lent_model() -> Iterator[LoadedModel]:
    """The tiny model for one engine, and then for the next: that it is exact is verified once for each."""
    model = _free_models.pop() if _free_models else tiny_model()
    yield model
    _free_models.append(model)


def direction(seed: int, scale: float = 8.0) -> torch.Tensor:
    """A random direction long enough to change what the tiny model says."""
    return torch.randn(HIDDEN, generator=torch.Generator().manual_seed(seed)) * scale


def vector(seed: int, *layers: int) -> SteeringVector:
    """A vector with a random direction at each of `layers` (default: block 1)."""
    return SteeringVector({layer: direction(seed + layer) for layer in layers or (1,)})


def eventually(is_so: Callable[[], bool], *, within: float = 20.0) -> None:
    """Wait until `is_so`, checked again and again; fails after `within` seconds."""
    deadline = time.monotonic() + within
    pause = threading.Event()
    while not is_so():
        assert time.monotonic() < deadline, "it did not become so in time"
        pause.wait(0.005)


@dataclass
class Server:
    """A running server and what a test may look at behind it."""

    url: str
    engine: BatchingEngine
    store: VectorStore
    text: TextProcessor
    key: str | None = None
    worker: JobWorker | None = None
    responses: ResponseStore | None = None
    app: FastAPI | None = None
    _closing: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    @property
    def jobs(self) -> JobWorker:
        """Who does training jobs; only where a trainer was given."""
        assert self.worker is not None
        return self.worker

    @property
    def headers(self) -> dict[str, str]:
        """The authorization, if there is a key."""
        return {} if self.key is None else {"Authorization": f"Bearer {self.key}"}

    @cached_property
    def http(self) -> httpx.Client:
        """A plain HTTP client."""
        return self._closing.enter_context(httpx.Client(base_url=self.url, headers=self.headers, timeout=60))

    @cached_property
    def sdk(self) -> openai.OpenAI:
        """The official client."""
        client = openai.OpenAI(base_url=f"{self.url}/v1", api_key=self.key or "none", max_retries=0, timeout=60)
        return self._closing.enter_context(client)

    def is_idle(self) -> bool:
        """True when nothing runs and nothing is held."""
        stats = self.engine.stats()
        held = (stats.num_running, stats.num_waiting, stats.num_rows_in_use or 0)
        return held == (0, 0, 0) and (stats.paging is None or all(pool.usage == 0 for pool in stats.paging.pools))


def _trainer(trainer: Trainer | type[SteeringTrainer], engine: Any, text: TextProcessor, store: VectorStore) -> Trainer:
    return trainer(engine, text, store) if isinstance(trainer, type) else trainer


@contextlib.contextmanager
def serving(
    folder: Path,
    *,
    keys: ApiKeys | None = None,
    key: str | None = None,
    chat_template: str | None = CHAT_TEMPLATE,
    engine_settings: EngineSettings | None = None,
    engine_class: Callable[[LoadedModel, EngineSettings], contextlib.AbstractContextManager[Any]] = BatchingEngine,
    model: LoadedModel | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    http: Literal["auto"] | type[asyncio.Protocol] = "auto",
    trainer: Trainer | type[SteeringTrainer] | None = None,
    store_class: type[VectorStore] = VectorStore,
    tracer: Tracer | None = None,
    keeps_responses: bool = True,
    norms: TypicalNorms | None = None,
    **settings: object,
) -> Iterator[Server]:
    """Serve the tiny model from another thread on a free port, with the registry in `folder`.

    `engine_class` makes the engine, `store_class` the registry. With a `trainer` it also does training jobs;
    `SteeringTrainer` itself is made for this engine. With a `model` and its `tokenizer` it serves these instead.
    `keeps_responses`: those whose requests ask for it.
    """
    limits = engine_settings or EngineSettings(num_pages=400, page_size=8, max_running=40, max_batch_tokens=128)
    text = TextProcessor(tokenizer or byte_tokenizer(chat_template))
    with contextlib.ExitStack() as parts:
        store = parts.enter_context(store_class(folder / "vectors"))
        engine = parts.enter_context(engine_class(model or parts.enter_context(_lent_model()), limits))
        worker = None
        if trainer is not None:
            database = parts.enter_context(JobDatabase(folder / "jobs.sqlite"))
            files = FileStore(folder / "files", database)
            worker = parts.enter_context(
                JobWorker(database, files, store, _trainer(trainer, engine, text, store))
            ).start()
        options = Settings(**settings)  # type: ignore[arg-type]
        responses = None
        if keeps_responses:
            path, most = folder / "responses.sqlite", options.max_stored_responses
            responses = parts.enter_context(ResponseStore(path, max_count=most))
        app = build_app(options, engine, text, store, keys, worker, tracer, responses, norms=norms)
        config = uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off", http=http)
        listener = socket.create_server(("127.0.0.1", 0))
        runner = uvicorn.Server(config)
        thread = threading.Thread(target=runner.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            eventually(lambda: runner.started)
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            server = Server(url, engine, store, text, key, worker, responses, app)
            with server._closing:
                yield server
        finally:
            runner.should_exit = True
            thread.join()
            listener.close()
