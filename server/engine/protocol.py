"""The one door between the rest of the server and whatever runs the model.

Any engine can stand behind it (vLLM, say): what only some have is optional in the statistics. Scoring and capture as
functions over `submit` are in `queries.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from server.engine.request import EngineRequest, OutputSink


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What the rest of the house may know of the loaded model.

    `sites` lists the steering sites that its architecture has; `max_model_len` counts prompt and generated tokens;
    `num_bytes` is the weights' size in memory. `sampling_defaults`: what the model's generation config sets of
    temperature, top_p, top_k, min_p and repetition_penalty.
    """

    model_id: str
    architecture: str
    num_layers: int
    hidden_size: int
    vocab_size: int
    max_model_len: int
    sites: tuple[str, ...]
    eos_token_ids: frozenset[int]
    sampling_defaults: Mapping[str, float]
    num_parameters: int
    num_bytes: int
    dtype: str
    device: str


@dataclass(frozen=True, slots=True)
class PagingStats:
    """What an engine counts that keeps its KV in pages. `num_free_pages` are those that a new request could take."""

    num_pages: int
    num_free_pages: int
    page_size: int
    total_preemptions: int


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A consistent snapshot of the engine's counters. Gauges first, then totals since the start.

    `total_steps` counts forward passes. What only some engines have comes last, and is None elsewhere:
    `num_rows_in_use`, of the tables that steer batches; `paging`.
    """

    num_running: int
    num_waiting: int
    num_steered_running: int
    total_requests: int
    total_prompt_tokens: int
    total_cached_tokens: int
    total_generated_tokens: int
    total_steps: int
    num_rows_in_use: int | None = None
    paging: PagingStats | None = None


class Engine(Protocol):
    """Runs requests. Thread-safe: any thread may call it."""

    @property
    def info(self) -> ModelInfo:
        """The loaded model."""
        ...

    @property
    def is_accepting(self) -> bool:
        """False once the engine drains or has stopped."""
        ...

    @property
    def max_requests(self) -> int:
        """How many live requests it takes at a time, running and waiting; more at once can never be accepted."""
        ...

    def submit(self, request: EngineRequest, sink: OutputSink) -> None:
        """Queue `request`; its events go to `sink`, the last of them with a finish reason.

        Raises `RequestRefused` for what cannot be run, `QueueFull`, and `EngineStopped`.
        """
        ...

    def abort(self, request_id: str) -> None:
        """End a request early; its sink gets a last event with `FinishReason.ABORT`. Unknown ids are ignored."""
        ...

    def stats(self) -> EngineStats:
        """Counters now."""
        ...

    def drain(self, timeout: float) -> bool:
        """Refuse new requests and wait up to `timeout` seconds for those under way; True when all ended."""
        ...

    def close(self) -> None:
        """Abort what is under way and free the model. Every sink has had its last event when it returns. Idempotent."""
        ...
