"""What `tiller bench` measures is what it says: whole batches, other prompts each time, steered in every block."""

from __future__ import annotations

import json

import pytest

from server.bench.offline import Workload, measure, run_bench, workloads_of
from server.bench.spread import Spread
from server.engine.protocol import Engine
from server.engine.request import EngineRequest, Generate, OutputSink
from tests.server.cli.running import call_tiller
from tests.server.engine.driving import engine_of, loaded


class Recorded:
    """An engine that notes what it is given."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.info = engine.info
        self.requests: list[EngineRequest] = []

    def submit(self, request: EngineRequest, sink: OutputSink) -> None:
        """Pass it on."""
        self.requests.append(request)
        self._engine.submit(request, sink)


def test_each_batch_comes_unsteered_and_with_as_many_vectors_as_it_has_requests() -> None:
    found = [(workload.batch, workload.num_vectors) for workload in workloads_of([1, 8], [1, 4, 32], 64, 64)]
    assert found == [(1, 0), (1, 1), (8, 0), (8, 1), (8, 4)]


@pytest.mark.parametrize("num_vectors", [0, 1, 3])
def test_a_measurement_runs_the_whole_batch(num_vectors: int) -> None:
    with engine_of(loaded(), max_batch_tokens=64, max_running=8) as engine:
        recorded = Recorded(engine)
        workload = Workload(5, num_vectors, prompt_tokens=9, new_tokens=4)
        timings = [measure(recorded, workload, seed) for seed in (0, 1)]  # type: ignore[arg-type]  # all that is used
        stats = engine.stats()
    assert all(timing.prefill > 0 and timing.decode > 0 for timing in timings)
    assert stats.total_generated_tokens == 2 * 5 * 4
    assert stats.total_cached_tokens == 0
    prompts = [request.prompt for request in recorded.requests]
    assert len(set(prompts)) == 10
    assert {len(prompt) for prompt in prompts} == {9}
    assert all(isinstance(request.work, Generate) for request in recorded.requests)
    plans = {request.plan.zones(9).fingerprint_of_span(0, 9) for request in recorded.requests}
    assert len(plans) == max(1, num_vectors)
    for request in recorded.requests:
        places = [place for entry in request.plan.entries for place in entry.applied.places]
        assert places == [("residual", layer) for layer in range(engine.info.num_layers if num_vectors else 0)]


def test_ratios_are_to_the_unsteered_batch_of_the_same_repeat() -> None:
    advanced: list[None] = []
    with engine_of(loaded(), max_batch_tokens=64, max_running=8) as engine:
        workloads = workloads_of([2], [2], 5, 3)
        plain, steered = run_bench(engine, workloads, 3, lambda: advanced.append(None))
    assert len(advanced) == 2 * (3 + 1)
    assert (plain.prefill_ratio, plain.decode_ratio) == (None, None)
    assert steered.decode_ratio is not None
    assert steered.decode_ratio.low <= steered.decode_ratio.median <= steered.decode_ratio.high
    assert steered.decode.low / plain.decode.high <= steered.decode_ratio.low


def test_a_spread_is_median_smallest_and_largest() -> None:
    assert Spread.of([3.0, 1.0, 2.0, 10.0]) == Spread(2.5, 1.0, 10.0)


def test_the_command_prints_a_table_and_json() -> None:
    asked = ("bench", "--batch", "2,1", "--vectors", "2", "--prompt-tokens", "4", "--new-tokens", "3", "--repeats", "1")
    table = call_tiller(*asked)
    assert table.returncode == 0, table.stderr
    lines = table.stdout.splitlines()
    assert lines[0].startswith("tiller-demo, bfloat16")
    assert lines[2].startswith("batch  vectors ")
    assert [line.split()[:2] for line in lines[3:]] == [["1", "none"], ["2", "none"], ["2", "2"]]
    found = json.loads(call_tiller(*asked, "--json").stdout)
    assert [figure["workload"]["batch"] for figure in found["figures"]] == [1, 2, 2]
    assert found["figures"][2]["decode_ratio"]["median"] > 0
    assert found["peak_memory_mib"] > 0


@pytest.mark.parametrize("given", ["0", "x", "1,,2", "1.5", "", "1,", "99999999999"])
def test_numbers_are_checked(given: str) -> None:
    done = call_tiller("bench", "--batch", given)
    assert done.returncode == 2
    assert "--batch: expected whole numbers above 0 such as 1,8,32" in done.stderr
