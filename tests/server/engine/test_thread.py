"""The engine's own thread: starts, drains, closes at any moment, and never dies with somebody waiting."""

from __future__ import annotations

import queue

from server.engine.engine import BatchingEngine, EngineSettings
from server.engine.request import EngineRequest, FinishReason, Generate, SamplingParams, TokenOutput
from tests.server.engine.driving import loaded, prompt_of

DEADLINE = 60.0
ENDLESS = SamplingParams(temperature=1.0, ignore_eos=True)


class Breaking(BatchingEngine):
    """Raises between two steps, as a bug of the scheduler would."""

    def step(self) -> bool:
        """See `BatchingEngine.step`."""
        if self.stats().total_generated_tokens > 3:
            raise RuntimeError("a bug")
        return super().step()


def test_a_bug_between_steps_leaves_nobody_waiting() -> None:
    engine = Breaking(loaded(), EngineSettings(num_pages=64, page_size=4))
    last: queue.Queue[TokenOutput] = queue.Queue()

    def receive(output: TokenOutput) -> None:
        if output.finish_reason is not None:
            last.put(output)

    with engine:
        for number in range(3):
            engine.submit(EngineRequest(str(number), prompt_of(5), Generate(50, ENDLESS)), receive)
        ended = [last.get(timeout=DEADLINE) for _ in range(3)]
        assert {output.finish_reason for output in ended} == {FinishReason.ERROR}
        assert engine.drain(DEADLINE)
        assert not engine.is_accepting
