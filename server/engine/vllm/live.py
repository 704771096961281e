"""LiveRequest: a request from `submit` to its last event, as the engine keeps it beside vLLM's own."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field, replace
from typing import Any, assert_never

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from server.engine.errors import NoTokenAllowed, OutputNotFinite, WorkFailed
from server.engine.grammar import GrammarState, new_mask
from server.engine.request import (
    Branch,
    Capture,
    EngineRequest,
    FinishReason,
    Force,
    Generate,
    OutputSink,
    Score,
    TokenLogprobs,
    TokenOutput,
)
from server.engine.vllm.messages import Answer, Chunk, KnownTokens
from server.steering.parts import PartReaderState
from server.steering.plan import Scope, Zones
from vectors.vocabulary import Part, Place


@dataclass(eq=False, slots=True)
class WholeBranch:
    """A `Branch`, whose parts are live requests: its last event comes when the last of them has ended."""

    request: EngineRequest
    sink: OutputSink
    parts: list[LiveRequest] = field(default_factory=list)
    ends: dict[int, TokenOutput] = field(default_factory=dict)

    @property
    def is_over(self) -> bool:
        """True when every part has ended."""
        return len(self.ends) == len(self.parts)

    def add(self, number: int, output: TokenOutput) -> None:
        """Take the last event of part `number`."""
        self.ends[number] = output
        if not self.is_over:
            return
        ends = [self.ends[number] for number in range(len(self.parts))]
        for reason in (FinishReason.ERROR, FinishReason.ABORT):
            found = next((end for end in ends if end.finish_reason is reason), None)
            if found is not None:
                self.sink(replace(found, branch_logits=None))
                return
        self.sink(
            replace(ends[0], branch_logits=torch.cat([e.branch_logits for e in ends if e.branch_logits is not None]))
        )


@dataclass(eq=False, slots=True)
class LiveRequest:
    """`name` is vLLM's id for it. A `Branch` is run as one live request for each plan, parts of a `whole`.

    `known` are the tokens that are read: the prompt and what follows it as given. `generated` come after them.
    `in_flight`: for each step under way with it, whether that computes the last token there is, and the positions that
    it captures. `num_asked`: known tokens whose log-probabilities were asked for: once, also after a preemption.
    `error`: why it fails.
    """

    request: EngineRequest
    sink: OutputSink
    name: str
    is_first: bool = True
    submitted_at: float = field(default_factory=time.monotonic)
    seconds_queued: float | None = None
    num_cached: int = 0
    whole: WholeBranch | None = None
    is_over: bool = False
    error: WorkFailed | None = None
    in_flight: deque[tuple[bool, tuple[int, ...]]] = field(default_factory=deque)
    num_asked: int = 0
    rows: dict[Scope, int] | None = None
    known: tuple[int, ...] = ()
    ends: frozenset[int] = frozenset()
    generated: list[int] = field(default_factory=list)
    parts: list[Part] = field(default_factory=lambda: ["content"])
    reader: PartReaderState | None = None
    grammar: GrammarState | None = None
    known_logprobs: list[TokenLogprobs | None] = field(default_factory=list)
    captured: dict[int, dict[Place, Tensor]] = field(default_factory=dict)
    vllm_request: Any = None

    @property
    def has_started(self) -> bool:
        """True once vLLM has it."""
        return self.vllm_request is not None

    @property
    def zones(self) -> Zones:
        """What the plan does where."""
        return self.request.plan.zones(len(self.request.prompt))

    @property
    def _known_parts(self) -> list[Part] | None:
        """As `Zones.runs` takes them."""
        return None if self.reader is None else self.parts

    @property
    def first_wanted(self) -> int | None:
        """The first position, beside the last, whose own computation is wanted: pages from there on are its own."""
        match self.request.work:
            case Force() as work:
                return max(work.start - 1, 0)
            case Score() as work:
                return len(self.request.prompt) - 1 if work.head else None
            case Capture():
                return min(self.capture_positions)
            case Generate() | Branch():
                return None
            case _ as unknown:
                assert_never(unknown)

    @property
    def capture_positions(self) -> tuple[int, ...]:
        """The positions of a `Capture`, counted from the start of the prompt, in the order asked."""
        work, length = self.request.work, len(self.request.prompt)
        return tuple(at % length for at in work.positions) if isinstance(work, Capture) else ()

    @property
    def _scored(self) -> tuple[int, ...]:
        """The tokens whose log-probabilities after the last known token are wanted."""
        match self.request.work:
            case Score() as work:
                return work.last
            case Capture() as work:
                return work.token_ids
            case Generate() | Force() | Branch():
                return ()
            case _ as unknown:
                assert_never(unknown)

    def begin(self, eos_token_ids: frozenset[int]) -> None:
        """Take up the work."""
        request = self.request
        match request.work:
            case Generate() as work:
                self.known = request.prompt
                sampling = work.sampling
                self.ends = sampling.stop_token_ids if sampling.ignore_eos else sampling.stop_token_ids | eos_token_ids
                self.grammar = None if work.grammar is None else work.grammar.start()
                if work.parts is not None:
                    self.reader = work.parts.start()
                    self.parts = [self.reader.part]
            case Force() as work:
                self.known = (*request.prompt, *work.response)
                self.known_logprobs = [None] if work.start == 0 else []
            case Score() as work:
                self.known = (*request.prompt, *work.head)
            case Branch() | Capture():
                self.known = request.prompt
            case _ as unknown:
                assert_never(unknown)

    def chunk(self, start: int, end: int, vocab_size: int, *, is_last: bool) -> Chunk:
        """What a step does that computes positions `start` to `end - 1`; `is_last`: no token is left for later ones.

        Raises `GrammarFailed`.
        """
        work = self.request.work
        captured = tuple(at for at in sorted(set(self.capture_positions)) if start <= at < end)
        self.in_flight.append((is_last, captured))
        draws = is_last and isinstance(work, Generate) and work.max_tokens > 0
        mask = None
        if draws and self.grammar is not None:
            words = new_mask(vocab_size)
            self.grammar.fill_mask(words)
            mask = words.numpy().tobytes()
        return Chunk(
            rows=self._rows(start, end),
            draws=draws,
            mask=mask,
            known=self._known_tokens(start, end),
            scored=self._scored if is_last else (),
            compared=work.token_ids if is_last and isinstance(work, Branch) else (),
            captured=tuple(at - start for at in captured),
        )

    def take(self, answer: Answer | None) -> TokenOutput | None:
        """The event that a step's answer makes, the last one when it has a reason. Raises `WorkFailed`."""
        is_last, positions = self.in_flight.popleft()
        if self.error is not None:
            raise self.error
        answer = answer or Answer()
        if not answer.is_finite:
            raise OutputNotFinite(is_steered=self.request.plan.is_steered)
        self.known_logprobs.extend(answer.known)
        for place, rows in answer.captured.items():
            for position, row in zip(positions, rows, strict=True):
                self.captured.setdefault(position, {})[place] = row
        if not is_last:
            return None
        match self.request.work:
            case Generate(max_tokens=0):
                return self.output(FinishReason.LENGTH)
            case Generate():
                return self._drawn(answer)
            case Force():
                return replace(self.output(FinishReason.LENGTH), known_logprobs=tuple(self.known_logprobs))
            case Score():
                head = [known.logprob for known in self.known_logprobs if known is not None]
                scores = tuple((*head, score) for score in answer.scores)
                return replace(self.output(FinishReason.LENGTH), scores=scores)
            case Branch():
                return replace(self.output(FinishReason.LENGTH), branch_logits=torch.tensor([answer.logits]))
            case Capture() as work:
                places: list[Place] = [(site, layer) for site in work.sites for layer in work.layers]
                found = {p: torch.stack([self.captured[at][p] for at in self.capture_positions]) for p in places}
                scores = tuple((score,) for score in answer.scores)
                return replace(self.output(FinishReason.LENGTH), activations=found, scores=scores)
            case _ as unknown:
                assert_never(unknown)

    def output(self, reason: FinishReason | None, token: int | None = None) -> TokenOutput:
        """An event; the last one tells of the whole request."""
        name = self.request.request_id
        if reason is None:
            return TokenOutput(name, token)
        is_end = token in self.ends
        return TokenOutput(name, token, None, reason, self.num_cached, self.seconds_queued, is_end=is_end)

    def _drawn(self, answer: Answer) -> TokenOutput:
        work, token = self.request.work, answer.token
        assert isinstance(work, Generate)
        if token is None:
            raise NoTokenAllowed
        self.accept(token)
        reason = None
        if token in self.ends or (self.grammar is not None and self.grammar.is_complete):
            reason = FinishReason.STOP
        elif len(self.generated) == work.max_tokens:
            reason = FinishReason.LENGTH
        return replace(self.output(reason, token), logprobs=answer.logprobs)

    def accept(self, token: int) -> None:
        """Append a drawn token. Raises `GrammarFailed`."""
        self.generated.append(token)
        if self.reader is not None:
            self.reader.accept(token)
            self.parts.append(self.reader.part)
        if self.grammar is not None and token not in self.ends:
            self.grammar.accept(token)

    def span_key(self, start: int, end: int) -> tuple[object, ...] | None:
        """What the prefix cache has to know of positions `start` to `end - 1` beside their tokens; None: nothing."""
        first = self.first_wanted
        if first is not None and end > first:
            return ("own", self.name)
        steering = self.zones.fingerprint_of_span(start, end, self._known_parts)
        return ("steering", steering) if steering else None

    def _known_tokens(self, start: int, end: int) -> KnownTokens | None:
        """The tokens after positions `start` to `end - 1` that are known and whose log-probabilities are wanted."""
        match self.request.work:
            case Force() as work:
                first, num_top = max(work.start, 1), work.num_logprobs
            case Score():
                first, num_top = len(self.request.prompt), 0
            case _:
                return None
        begin = max(first - 1 + self.num_asked, start)
        tokens = self.known[begin + 1 : end + 1] if begin < end else ()
        self.num_asked += len(tokens)
        return KnownTokens(begin - start, tokens, num_top) if tokens else None

    def _rows(self, start: int, end: int) -> npt.NDArray[np.int64] | None:
        """The row of each position, int64 `[end - start]`; None when all are unsteered."""
        if self.rows is None or not any(self.rows.values()):
            return None
        found = np.empty(end - start, dtype=np.int64)
        for scope, first, last in self.zones.runs(start, end, self._known_parts):
            found[first - start : last - start] = self.rows[scope]
        return found if found.any() else None
