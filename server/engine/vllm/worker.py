"""vLLM's workers with steering, named by vLLM's option `worker_cls`.

A worker loads the model, installs the hooks before vLLM profiles, compiles and captures it, and draws tokens with
tiller's sampler. It takes the step's orders from the scheduler's output and adds its answers to its own.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.v1.kv_cache_interface import AttentionSpec
from vllm.v1.outputs import SamplerOutput

from server.engine.vllm.drawing import Drawer
from server.engine.vllm.messages import Answer, StepOrders
from server.engine.vllm.pages import zero_new_blocks
from server.engine.vllm.sites import find_worker_sites
from server.engine.vllm.steering import WorkerSteering

zero_new_blocks()


class _Steers:
    """Comes before a worker class of vLLM's."""

    vllm_config: Any
    model_runner: Any

    def load_model(self, **kwargs: Any) -> None:
        """Load the model and steer it."""
        base: Any = super()
        base.load_model(**kwargs)
        runner, config = self.model_runner, self.vllm_config
        options = config.additional_config["tiller"]
        self._sites = find_worker_sites(runner.model, config)
        self._steering = WorkerSteering(
            self._sites,
            num_rows=options["rows"],
            num_slots=options["slots"],
            num_captures=options["captures"],
            max_tokens=config.scheduler_config.max_num_batched_tokens,
            device=next(runner.model.parameters()).device,
            is_compiled=not config.model_config.enforce_eager,
        )
        self._drawer = Drawer()
        self._orders = StepOrders()
        self._counts: dict[str, int] = {}
        self._answers: dict[str, Answer] = {}
        self._hidden: torch.Tensor | None = None
        self._join(runner)

    def execute_model(self, scheduler_output: Any) -> Any:
        """Compute a step, steered as its orders say."""
        orders: StepOrders = getattr(scheduler_output, "orders", None) or StepOrders()
        for name in scheduler_output.finished_req_ids:
            self._drawer.forget(name)
        self._drawer.begin(orders.drawings)
        self._steering.write(orders.rows)
        self._orders, self._counts = orders, scheduler_output.num_scheduled_tokens
        if scheduler_output.new_block_ids_to_zero and self.model_runner.device.type == "cpu":
            self._zero(scheduler_output.new_block_ids_to_zero)
        base: Any = super()
        return base.execute_model(scheduler_output)

    def sample_tokens(self, grammar_output: Any) -> Any:
        """Answer the step's orders."""
        base: Any = super()
        state = self.model_runner.execute_model_state
        self._hidden = None if state is None else state.hidden_states
        self._answers = {}
        output = base.sample_tokens(grammar_output)
        if self._hidden is not None:
            for name, captured in self._steering.captured().items():
                self._answers.setdefault(name, Answer()).captured = captured
            output.answers = self._answers
        self._hidden = None
        self._steering.end_step()
        return output

    def tiller_info(self) -> dict[str, Any]:
        """What this worker holds, in plain types; called by name."""
        return {"sites": list(self._sites.modules), "device": str(self.model_runner.device)}

    def _join(self, runner: Any) -> None:
        """Have the runner ask us where a step's batch is known, and for its tokens."""
        forward, sampler = runner._model_forward, runner.sampler

        def steered_forward(*args: Any, **kwargs: Any) -> Any:
            if self._counts:
                self._steering.begin_step(runner.input_batch.req_ids, self._counts, self._orders.chunks)
            return forward(*args, **kwargs)

        def draw(logits: torch.Tensor, sampling_metadata: Any, **kwargs: Any) -> Any:
            if self._hidden is None:  # vLLM tries its sampler when it measures memory
                return sampler(logits=logits, sampling_metadata=sampling_metadata, **kwargs)
            names = runner.input_batch.req_ids
            self._answers = self._drawer.answers(
                names, self._counts, self._orders.chunks, logits, self._hidden, runner.model.compute_logits
            )
            drawn = [answer.token if (answer := self._answers.get(name)) is not None else None for name in names]
            for index, token in enumerate(drawn):
                if token is None:
                    runner.discard_request_mask.np[index] = True
            tokens = torch.tensor([[0 if token is None else token] for token in drawn], dtype=torch.int32)
            return SamplerOutput(sampled_token_ids=tokens.to(logits.device), logprobs_tensors=None)

        runner._model_forward = steered_forward
        runner.sampler = draw

    def _zero(self, block_ids: list[int]) -> None:
        """Zero blocks of every kind of attention; vLLM's own for CPUs leaves out sliding windows."""
        runner = self.model_runner
        done: set[int] = set()
        for group in runner.kv_cache_config.kv_cache_groups:
            if isinstance(group.kv_cache_spec, AttentionSpec):
                for name in group.layer_names:
                    cache = runner.compilation_config.static_forward_context[name].kv_cache
                    if cache.data_ptr() not in done:
                        done.add(cache.data_ptr())
                        cache[block_ids] = 0


def __getattr__(name: str) -> type:
    """`SteeringCPUWorker` and `SteeringGPUWorker`, made when asked for: another platform's cannot be imported."""
    if name == "SteeringCPUWorker":
        from vllm.v1.worker.cpu_worker import CPUWorker

        base = CPUWorker
    elif name == "SteeringGPUWorker":
        from vllm.v1.worker.gpu_worker import Worker

        base = Worker
    else:
        raise AttributeError(name)
    worker = type(name, (_Steers, base), {"__module__": __name__})
    globals()[name] = worker
    return worker
