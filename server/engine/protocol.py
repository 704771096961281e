"""The one door between the API and whatever runs the model: submit, abort, score, capture, stats.

Another engine can stand behind it (vLLM, say): nothing here names pages, threads or torch modules.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from server.engine.request import CaptureSpec, GenerationRequest, OutputSink, Priority
from server.steering.plan import UNSTEERED, SteeringPlan
from vectors.vocabulary import Place


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
class EngineStats:
    """A consistent snapshot of the engine's counters. Gauges first, then totals since the start."""

    num_running: int
    num_waiting: int
    num_pages: int
    num_free_pages: int
    page_size: int
    num_rows_in_use: int
    num_steered_running: int
    total_requests: int
    total_prompt_tokens: int
    total_cached_tokens: int
    total_generated_tokens: int
    total_preemptions: int
    total_steps: int


class Engine(Protocol):
    """Runs generation requests. Thread-safe: any thread may call it."""

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

    def submit(self, request: GenerationRequest, sink: OutputSink) -> None:
        """Queue `request`; its events go to `sink`, the last of them with a finish reason.

        Raises `Overloaded` (queue full), `Unavailable` (stopped or draining), `ContextLengthExceeded`,
        `InvalidRequest` (token ids out of the vocabulary, an empty prompt, a capture outside the model).
        """
        ...

    def abort(self, request_id: str) -> None:
        """End a request early; its sink gets a last event with `FinishReason.ABORT`. Unknown ids are ignored."""
        ...

    def score(
        self,
        prompt: Sequence[int],
        choices: Sequence[Sequence[int]],
        *,
        plan: SteeringPlan = UNSTEERED,
        priority: Priority = Priority.BACKGROUND,
    ) -> Future[list[list[float]]]:
        """Log-probabilities of the tokens of each choice as continuation of `prompt`, steered by `plan`."""
        ...

    def score_branches(
        self,
        prompt: Sequence[int],
        token_ids: Sequence[int],
        branches: Sequence[SteeringPlan],
        *,
        priority: Priority = Priority.BACKGROUND,
    ) -> Future[Tensor]:
        """Log-probabilities, float32 `[branches, tokens]` (CPU), of the next tokens after `prompt` under each plan.

        There is at least one, and all steer what comes before the last prompt token alike. A plan that breaks the
        model gives NaN.
        """
        ...

    def capture(
        self,
        prompt: Sequence[int],
        spec: CaptureSpec,
        *,
        plan: SteeringPlan = UNSTEERED,
        priority: Priority = Priority.BACKGROUND,
    ) -> Future[dict[Place, Tensor]]:
        """Activations `{(site, layer): float32 [positions, hidden]}` (CPU) of `prompt` as `spec` says."""
        ...

    def stats(self) -> EngineStats:
        """Counters now."""
        ...
