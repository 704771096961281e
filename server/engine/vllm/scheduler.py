"""vLLM's scheduler, which tells the engine of each step: named by vLLM's option `scheduler_cls`."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Protocol

from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import RequestStatus

from server.engine.vllm.messages import Answer, StepOrders


class Driver(Protocol):
    """Who gives the orders of steps and takes their answers."""

    def orders(self, counts: dict[str, int], requests: dict[str, Any]) -> StepOrders:
        """The orders of a step of `counts[name]` tokens of each request, whose numbers include these tokens."""
        ...

    def take(self, names: Collection[str], answers: dict[str, Answer]) -> list[str]:
        """Take what a step of `names` gave, before vLLM does; the requests that end with it."""
        ...


class SteeringScheduler(Scheduler):
    """Its `driver` is set once the engine core is there."""

    driver: Driver | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.max_model_len += 1  # vLLM leaves out the last token of a full context, as none can be drawn after it

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """Add the orders to a step."""
        output = super().schedule(*args, **kwargs)
        if self.driver is not None and output.num_scheduled_tokens:
            output.orders = self.driver.orders(output.num_scheduled_tokens, self.requests)
        return output

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        """Take the answers of a step."""
        ended: list[str] = []
        if self.driver is not None and scheduler_output.num_scheduled_tokens:
            answers = getattr(model_runner_output, "answers", {})
            ended = self.driver.take(scheduler_output.num_scheduled_tokens, answers)
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        if ended:
            self.finish_requests(ended, RequestStatus.FINISHED_STOPPED)
        return outputs
