"""The simplest engine that keeps the contract: a plain transformers model, plain hooks, one request after another.

A token is a full forward pass. It shares with the real engine what is pure: sampling, masks, and what is refused.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, assert_never

import torch
from torch import Tensor, nn

from server.engine.admission import check_request
from server.engine.errors import (
    DuplicateRequest,
    EngineStopped,
    NoTokenAllowed,
    OutputNotFinite,
    QueueFull,
    StepFailed,
    WorkFailed,
)
from server.engine.grammar import allowed_tokens
from server.engine.protocol import EngineHealth, EngineStats, ModelInfo
from server.engine.request import (
    Branch,
    Capture,
    EngineRequest,
    FinishReason,
    Force,
    Generate,
    OutputSink,
    Priority,
    Score,
    TokenOutput,
    TokenReadings,
)
from server.engine.sampler import NO_TOKEN, RowSampler, logprobs_of, sample
from server.steering.plan import Scope, SteeringPlan
from vectors.applied import AppliedVector
from vectors.operations import activated
from vectors.positions import coverage_of
from vectors.sites import find_sites
from vectors.vocabulary import Part, Place


@dataclass(eq=False)
class _Job:
    """A request from `submit` to its last event."""

    request: EngineRequest
    sink: OutputSink
    submitted_at: float = field(default_factory=time.monotonic)
    seconds_queued: float | None = None
    is_aborted: bool = False


class NaiveEngine:
    """Implements `protocol.Engine` with `module`, of which `info` tells; takes at most `max_requests` live requests."""

    def __init__(self, module: nn.Module, info: ModelInfo, max_requests: int = 1000) -> None:
        self.info = info
        self.max_requests = max_requests
        self._module: Any = module
        self._modules = find_sites(module).modules
        self._jobs: dict[str, _Job] = {}
        self._running: tuple[_Job, ...] = ()
        self._seen: dict[Place, Tensor] = {}
        self._scores: dict[int, Tensor] = {}
        self._totals: Counter[str] = Counter()
        self._changed = threading.Condition()
        self.is_accepting = True
        self._thread = threading.Thread(target=self._run, name="naive-engine", daemon=True)
        self._thread.start()

    def submit(self, request: EngineRequest, sink: OutputSink) -> None:
        """See `protocol.Engine.submit`."""
        check_request(request, self.info, self.info.max_model_len)
        with self._changed:
            if not self.is_accepting:
                raise EngineStopped
            if request.request_id in self._jobs:
                raise DuplicateRequest(request.request_id)
            num_live = [job.request.priority for job in self._jobs.values()].count(Priority.LIVE)
            if request.priority is Priority.LIVE and num_live >= self.max_requests:
                raise QueueFull(num_live)
            self._jobs[request.request_id] = _Job(request, sink)
            self._totals["requests"] += 1
            self._changed.notify_all()

    def abort(self, request_id: str) -> None:
        """See `protocol.Engine.abort`."""
        with self._changed:
            if request_id in self._jobs:
                self._jobs[request_id].is_aborted = True

    def stats(self) -> EngineStats:
        """See `protocol.Engine.stats`."""
        with self._changed:
            num_waiting = sum(job.seconds_queued is None for job in self._jobs.values())
            asked, read, made, steps = (self._totals[each] for each in ("requests", "prompt", "generated", "steps"))
            num_steered = sum(job.request.plan.is_steered for job in self._running)
            return EngineStats(len(self._running), num_waiting, num_steered, asked, read, 0, made, steps)

    def health(self) -> EngineHealth:
        """See `protocol.Engine.health`. It does not watch its steps."""
        return EngineHealth(is_alive=self._thread.is_alive(), seconds_in_step=0.0, latest_steps=())

    def drain(self, timeout: float) -> bool:
        """See `protocol.Engine.drain`."""
        with self._changed:
            self.is_accepting = False
            return self._changed.wait_for(lambda: not self._jobs, timeout)

    def close(self) -> None:
        """See `protocol.Engine.close`."""
        with self._changed:
            self.is_accepting = False
            for job in self._jobs.values():
                job.is_aborted = True
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: not self.is_accepting or bool(self._jobs))
                if not self._jobs:
                    return
                job = min(self._jobs.values(), key=lambda job: (not job.is_aborted, job.request.priority))
                if not job.is_aborted:
                    self._running, job.seconds_queued = (job,), time.monotonic() - job.submitted_at
                    self._totals["prompt"] += len(job.request.prompt)
            for output in self._outputs(job):
                self._running = self._running if output.finish_reason is None else ()
                with contextlib.suppress(Exception):  # a sink that raises is its owner's bug
                    job.sink(replace(output, seconds_queued=job.seconds_queued))
            with self._changed:
                del self._jobs[job.request.request_id]
                self._changed.notify_all()

    def _outputs(self, job: _Job) -> Iterator[TokenOutput]:
        try:
            assert not job.request.plan.gated, "gates are compared with tests/reference.py"
            yield from self._worked(job)
        except InterruptedError:
            yield TokenOutput(job.request.request_id, finish_reason=FinishReason.ABORT)
        except WorkFailed as error:
            yield TokenOutput(job.request.request_id, finish_reason=FinishReason.ERROR, error=error)
        except Exception:  # any failure ends its request, never the engine
            yield TokenOutput(job.request.request_id, finish_reason=FinishReason.ERROR, error=StepFailed())

    def _worked(self, job: _Job) -> Iterator[TokenOutput]:
        request = job.request
        last = TokenOutput(request.request_id, finish_reason=FinishReason.LENGTH)
        match request.work:
            case Generate(max_tokens=0):
                if request.plan.probes:
                    self._logits(job, request.prompt)
                yield replace(last, readings=self._told(job, is_first=True, is_token=False))
            case Generate() as work:
                yield from self._generated(job, work)
            case Force() as work:
                yield replace(last, **self._known(job, work))
            case Score() as work:
                head = self._known(job, Force(work.head, len(request.prompt)))["known_logprobs"]
                logits = _checked(self._logits(job, (*request.prompt, *work.head))[-1], request.plan)
                ends = torch.log_softmax(logits, -1)[list(work.last)].tolist()
                yield replace(last, scores=tuple((*(each.logprob for each in head if each), end) for end in ends))
            case Branch() as work:
                jobs = [replace(job, request=replace(request, plan=plan)) for plan in work.plans]
                rows = torch.stack([self._logits(each, request.prompt)[-1] for each in jobs])[:, list(work.token_ids)]
                is_finite = rows.isfinite().all(-1, keepdim=True)
                yield replace(last, branch_logits=rows.where(is_finite, torch.nan))
            case Capture() as work:
                logits = self._logits(job, request.prompt)[-1]
                places: list[Place] = [(site, layer) for site in work.sites for layer in work.layers]
                found = {place: self._seen[place][list(work.positions)] for place in places}
                ends = torch.log_softmax(_checked(logits, request.plan), -1).tolist() if work.token_ids else []
                yield replace(last, activations=found, scores=tuple((ends[token],) for token in work.token_ids))
            case _ as unknown:
                assert_never(unknown)

    def _generated(self, job: _Job, work: Generate) -> Iterator[TokenOutput]:
        sampler = RowSampler(work.sampling, self.info.eos_token_ids, job.request.prompt)
        grammar = None if work.grammar is None else work.grammar.start()
        reader = None if work.parts is None else work.parts.start()
        tokens, parts = list(job.request.prompt), list[Part]()
        reason: FinishReason | None = None
        while reason is None:
            parts.append("content" if reader is None else reader.part)
            logits = _checked(self._logits(job, tokens, parts)[-1], job.request.plan)[None]
            (token,) = sample(logits, [sampler], {0: allowed_tokens(grammar, self.info.vocab_size)} if grammar else {})
            if token == NO_TOKEN:
                raise NoTokenAllowed
            sampler.record(token)
            is_end = token in sampler.end_token_ids
            tokens.append(token)
            if reader is not None:
                reader.accept(token)
            if grammar is not None and not is_end:
                grammar.accept(token)
            if is_end or (grammar is not None and grammar.is_complete):
                reason = FinishReason.STOP
            elif len(tokens) - len(job.request.prompt) == work.max_tokens:
                reason = FinishReason.LENGTH
            logprobs = None if work.num_logprobs is None else logprobs_of(logits, [token], [work.num_logprobs])[0]
            self._totals["generated"] += 1
            told = self._told(job, is_first=len(parts) == 1, is_token=True)
            yield TokenOutput(job.request.request_id, token, logprobs, reason, is_end=is_end, readings=told)

    def _told(self, job: _Job, *, is_first: bool, is_token: bool) -> TokenReadings | None:
        """What the probes read in the latest pass."""
        num_prompt = len(job.request.prompt)
        covered = [coverage_of(probe.positions, num_prompt) for probe in job.request.plan.probes]
        if not covered:
            return None
        found = [self._scores[number].tolist() for number in range(len(covered))]
        scores = tuple(
            each[-1] if len(each) - 1 in own.response else None for each, own in zip(found, covered, strict=True)
        )
        prompt = tuple(
            tuple(each[at] if at in own.prompt else None for at in range(num_prompt)) if own.prompt else None
            for each, own in zip(found, covered, strict=True)
        )
        return TokenReadings(scores if is_token else (), prompt if is_first and any(prompt) else None)

    def _known(self, job: _Job, work: Force) -> dict[str, Any]:
        first, tokens = max(work.start, 1), (*job.request.prompt, *work.response)
        rows = _checked(self._logits(job, tokens)[first - 1 : len(tokens) - 1], job.request.plan)
        found = logprobs_of(rows, tokens[first:], [work.num_logprobs] * len(rows))
        kept = torch.log_softmax(rows, -1) if work.keeps_rows else None
        return {"known_logprobs": (*(None,) * (work.start == 0), *found), "known_rows": kept}

    @torch.no_grad()
    def _logits(self, job: _Job, tokens: Sequence[int], parts: Sequence[Part] = ()) -> Tensor:
        """Logits `[tokens, vocabulary]` of one pass; its activations `[tokens, hidden]` are in `_seen` afterwards."""
        if job.is_aborted:
            raise InterruptedError
        self._totals["steps"] += 1
        boundary = len(job.request.prompt) - 1
        scopes: dict[Scope, list[int]] = {}
        for position in range(len(tokens)):
            part: Part = parts[position - boundary] if parts and position >= boundary else "content"
            scope = job.request.plan.scope_at(position, boundary + 1, part)
            scopes.setdefault(scope, []).append(position)

        def hook(place: Place, output: Any) -> Any:
            activation = output[0] if isinstance(output, tuple) else output
            changed = activation.reshape(len(tokens), -1).clone()
            self._read(job, place, changed, is_before=True)
            for scope, rows in scopes.items():
                entries = [e.applied for e in scope.entries if place in e.applied.places]
                changed[rows] = _steered(changed[rows], entries, place[1])
            self._read(job, place, changed, is_before=False)
            self._seen[place], changed = changed, changed.view_as(activation)
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        places = {place for entry in job.request.plan.entries for place in entry.applied.places}
        places |= {probe.place for probe in job.request.plan.probes}
        if isinstance(job.request.work, Capture):
            places |= {(site, layer) for site in job.request.work.sites for layer in job.request.work.layers}
        with contextlib.ExitStack() as hooks:
            for site, layer in places:
                module = self._modules[site][layer]
                handle = module.register_forward_hook(lambda _, args, out, at=(site, layer): hook(at, out))
                hooks.callback(handle.remove)
            logits: Tensor = self._module(input_ids=torch.tensor([list(tokens)]), use_cache=False).logits[0]
        return logits

    def _read(self, job: _Job, place: Place, activations: Tensor, *, is_before: bool) -> None:
        for number, probe in enumerate(job.request.plan.probes):
            if (probe.place, probe.is_before) == (place, is_before):
                write = probe.feature.write
                read = write / write.norm() ** 2 if probe.feature.read is None else probe.feature.read
                bias = torch.zeros(1) if probe.feature.bias is None else probe.feature.bias
                self._scores[number] = activated(activations @ read + bias, probe.feature.activation)


def _checked(logits: Tensor, plan: SteeringPlan) -> Tensor:
    if not logits.isfinite().all():
        raise OutputNotFinite(is_steered=plan.is_steered)
    return logits


def _steered(before: Tensor, entries: Sequence[AppliedVector], layer: int) -> Tensor:
    """`before` `[tokens, hidden]` after the operations of `entries` at `layer`: adds first, the others in order."""
    steered = before
    for entry in sorted(entries, key=lambda entry: entry.operation != "add"):
        directions = entry.directions[layer].reshape(-1, before.shape[-1])
        reads = entry.reads.get(layer, directions / directions.norm() ** 2).reshape(-1, before.shape[-1])
        found = activated(steered @ reads.T + entry.biases.get(layer, torch.zeros(1)), entry.activation)
        match entry.operation:
            case "add":
                steered = steered + entry.scale * directions
            case "ablate":
                steered = steered - entry.scale * found @ directions
            case "amplify":
                steered = steered + entry.scale * found @ directions
            case "clamp":
                steered = steered + (entry.scale - found) @ directions
            case "cap":
                steered = steered + entry.scale * (found.clamp(entry.min, entry.max) - found) @ directions
            case _ as unknown:
                assert_never(unknown)
    if any(entry.preserve_norm for entry in entries):
        steered = steered * (before.norm(dim=-1, keepdim=True) / steered.norm(dim=-1, keepdim=True))
    return steered
