"""The interface between the rest of the server and whatever runs the model.

Any engine can implement it, for example vLLM; statistics that only some engines have are optional. `queries.py` has
scoring, branches and capture as functions over `submit`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from server.engine.request import EngineRequest, OutputSink


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What the rest of the server knows about the loaded model.

    `sites` lists the steering sites that its architecture has; `max_model_len` counts prompt and generated tokens;
    `num_bytes` and `weights_dtype` are those of the weights as they were loaded, `dtype` is what they are computed in.
    `sampling_defaults` are the values of temperature, top_p, top_k, min_p, repetition_penalty and min_tokens that the
    model's generation config sets, and `suppressed_token_ids` the tokens that it never lets the model say.
    `fingerprint` differs between weights that differ; empty: the engine cannot tell.
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
    weights_dtype: str
    dtype: str
    device: str
    suppressed_token_ids: frozenset[int] = frozenset()
    fingerprint: str = ""


@dataclass(frozen=True, slots=True)
class PoolStats:
    """The KV pages of one group of layers. A new request could take `num_free_pages`."""

    num_pages: int
    num_free_pages: int

    @property
    def usage(self) -> float:
        """The share of pages in use, 0 to 1."""
        return 1 - self.num_free_pages / self.num_pages if self.num_pages else 0.0


@dataclass(frozen=True, slots=True)
class PagingStats:
    """Counters of an engine that keeps its KV in pages of `page_size` tokens.

    `pools`: first that of the layers that see farthest, then those of layers with smaller windows or chunks.
    """

    pools: tuple[PoolStats, ...]
    page_size: int
    total_preemptions: int


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A consistent snapshot of the engine's counters: gauges first, then totals since the start.

    `total_steps` counts forward passes, `total_failed_steps` those of them that raised. The fields that are None by
    default belong to engines that have them: `num_rows_in_use` of the steering bank, `paging`, and `num_states_in_use`:
    the states of recurrent layers that sequences hold.
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
    num_states_in_use: int | None = None
    total_failed_steps: int = 0


@dataclass(frozen=True, slots=True)
class EngineHealth:
    """Whether an engine still works.

    `is_alive`: False once it has stopped after an error. `seconds_in_step`: how long the step under way has taken so
    far, 0 between steps. `latest_steps`: for each of the latest steps, oldest first, whether it raised.
    """

    is_alive: bool
    seconds_in_step: float
    latest_steps: tuple[bool, ...]


class Engine(Protocol):
    """Runs requests. Thread-safe: any thread may call it."""

    @property
    def info(self) -> ModelInfo:
        """The loaded model."""
        ...

    @property
    def is_accepting(self) -> bool:
        """False once the engine is draining or has stopped."""
        ...

    @property
    def max_requests(self) -> int:
        """The most live requests at a time, running and waiting together."""
        ...

    def submit(self, request: EngineRequest, sink: OutputSink) -> None:
        """Queue `request`; its events go to `sink`, the last of them with a finish reason.

        Raises `RequestRefused` if the request cannot be run, `QueueFull`, and `EngineStopped`.
        """
        ...

    def abort(self, request_id: str) -> None:
        """End a request early; its sink gets a last event with `FinishReason.ABORT`. Unknown ids are ignored."""
        ...

    def stats(self) -> EngineStats:
        """The current counters."""
        ...

    def health(self) -> EngineHealth:
        """Whether it still works, now."""
        ...

    def drain(self, timeout: float) -> bool:
        """Refuse new requests and wait up to `timeout` seconds for the others; True when all have ended."""
        ...

    def close(self) -> None:
        """Abort all requests and free the model. When it returns, every sink has its last event. Idempotent.

        It returns within seconds, also when a step does not end.
        """
        ...
