"""`tiller bench --url` counts what a server did, whoever made the server, and says what failed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from server.bench.online import Answered, Client, Load, OnlineFigure, Requests, Sample, measure, run_online
from server.bench.spread import percentile
from tests.server.api.serving import Server, serving, vector
from tests.server.cli.running import call_tiller

REQUESTS = Requests("tiny", number=4, prompt_words=10, shared_words=0, new_tokens=6)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("online")) as server:
        for seed, name in enumerate(("calm", "bold")):
            server.store.put(name, vector(seed, 1))
        yield server


def figures(url: str, loads: list[Load], requests: Requests = REQUESTS, repeats: int = 2) -> list[OnlineFigure]:
    async def run() -> list[OnlineFigure]:
        async with Client({"base_url": url, "timeout": 60}) as client:
            return await run_online(client, loads, requests, repeats)

    return asyncio.run(run())


def test_every_request_is_made_and_every_token_counted(server: Server) -> None:
    before = server.engine.stats()
    loads = [Load(2, None), Load(2, None, ("calm", "bold")), Load(None, 500.0)]
    closed, steered, opened = figures(server.url, loads)
    after = server.engine.stats()
    assert after.total_generated_tokens - before.total_generated_tokens == 3 * (2 + 1) * 4 * 6
    for figure in (closed, steered, opened):
        assert (figure.num_requests, figure.errors) == (2 * 4, {})
        assert figure.prompt_tokens > 10
        assert len(figure.first) == len(figure.between) == 3
        assert figure.tokens_per_second.low > 0
    assert closed.ratio is None
    assert steered.ratio is not None
    low, high = (steered.tokens_per_second, closed.tokens_per_second)
    assert low.low / high.high <= steered.ratio.median <= low.high / high.low


def test_only_what_is_meant_to_be_shared_is_found_in_the_prefix_cache(server: Server) -> None:
    apart, shared = (
        figures(server.url, [Load(1, None)], Requests("tiny", 4, 40, words, 2), repeats=1)[0] for words in (0, 30)
    )
    assert apart.cached_share < 0.35  # the template's words
    assert shared.cached_share > 0.6


def test_refusals_are_counted_in_the_words_of_the_server(server: Server) -> None:
    _, figure = figures(server.url, [Load(1, None), Load(1, None, ("calm", "nobody"))], repeats=1)
    ((message, count),) = figure.errors.items()
    assert count == 2
    assert message.startswith("404: ")
    assert "nobody" in message


class AnotherServer:
    """What a server of another kind may send: no usage, several tokens at a time, empty pieces, and an error."""

    def __init__(self, events: list[dict[str, Any]]) -> None:
        self._events = events
        self.bodies: list[dict[str, Any]] = []

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        (length,) = (int(line.split(":")[1]) for line in head.splitlines() if line.startswith("content-length"))
        self.bodies.append(json.loads(await reader.readexactly(length)))
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
        for event in self._events:
            writer.write(f"data: {json.dumps(event)}\n\n".encode())
        writer.write(b"data: [DONE]\n\n")
        await writer.drain()
        writer.close()


def sample_of(events: list[dict[str, Any]]) -> tuple[Sample, list[dict[str, Any]]]:
    async def run() -> tuple[Sample, list[dict[str, Any]]]:
        other = AnotherServer(events)
        async with (
            await asyncio.start_server(other, "127.0.0.1", 0) as listening,
            Client({"base_url": f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"}) as client,
        ):
            return await measure(client, Load(1, None), Requests("m", 3, 5, 2, 4, {"seed": 1}), 0), other.bodies

    return asyncio.run(run())


def piece(text: str) -> dict[str, Any]:
    return {"choices": [{"delta": {"content": text}}]}


def test_a_server_that_counts_nothing_is_counted_by_its_pieces() -> None:
    sample, bodies = sample_of([{"choices": [{"delta": {"role": "assistant"}}]}, piece("a"), piece(""), piece("b")])
    assert [answered.num_tokens for answered in sample.whole] == [2, 2, 2]
    assert len(sample.between) == 3
    prompts = [body["messages"][0]["content"].split() for body in bodies]
    assert [len(prompt) for prompt in prompts] == [5, 5, 5]
    assert len({tuple(prompt[:2]) for prompt in prompts}) == 1
    assert len({tuple(prompt) for prompt in prompts}) == 3
    assert all((body["seed"], body["max_tokens"], body["stream"]) == (1, 4, True) for body in bodies)


def test_an_error_within_a_stream_is_a_failure() -> None:
    sample, _ = sample_of([piece("a"), {"error": {"message": "the engine failed"}}])
    assert [answered.error for answered in sample.answered] == ["the engine failed"] * 3
    assert sample.whole == []
    assert sample.tokens_per_second == 0


def test_speed_and_latencies_are_those_of_whole_answers() -> None:
    whole = [Answered([0.5, 0.7, 1.0], num_tokens=4), Answered([0.25], num_tokens=1)]
    sample = Sample([*whole, Answered([0.1], num_tokens=9, error="it broke"), Answered()], seconds=2.0)
    assert sample.tokens_per_second == 2.5
    assert sample.first == [0.5, 0.25]
    assert sample.between == pytest.approx([0.2, 0.3])


def test_percentiles_are_nearest_ranks() -> None:
    values = [float(number) for number in np.random.default_rng(0).permutation(37)]
    for share in (0.0, 0.5, 0.95, 0.99, 1.0):
        assert percentile(values, share) == np.quantile(values, share, method="inverted_cdf")


def test_the_command_prints_a_table_json_and_a_plot(server: Server, tmp_path: Any) -> None:
    asked = ["bench", "--url", server.url, "--clients", "1,2", "--steer", "calm,bold"]
    asked += ["--new-tokens", "3", "--prompt-tokens", "4", "--repeats", "1"]
    table = call_tiller(*asked, "--plot", tmp_path / "speed.png")
    assert table.returncode == 0, table.stderr
    lines = table.stdout.splitlines()
    assert lines[0] == f"tiny at {server.url}"
    assert [line.split()[:4] for line in lines[3:7]] == [
        ["1", "clients", "none", "2/2"],
        ["1", "clients", "2", "2/2"],
        ["2", "clients", "none", "4/4"],
        ["2", "clients", "2", "4/4"],
    ]
    assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads(call_tiller(*asked, "--json").stdout)
    assert [figure["load"]["vectors"] for figure in found["figures"]] == [[], ["calm", "bold"]] * 2


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--url", "http://127.0.0.1:9", "--batch", "1"], "--batch applies not with --url"),
        (["--rate", "1"], "--rate applies only with --url"),
        (["--url", "http://127.0.0.1:9", "--rate", "1", "--clients", "2"], "expected --rate or --clients, got both"),
        (["--url", "http://127.0.0.1:9", "--rate", "0"], "--rate: expected requests a second such as 0.5,2, got '0'"),
        (["--url", "http://127.0.0.1:9", "--body", "[]"], "--body: expected a JSON object, got '[]'"),
        (["--url", "ftp://a"], "expected an http:// or https:// URL"),
        (["--shared-tokens", "65"], "--shared-tokens: expected 0 to --prompt-tokens (64), got 65"),
    ],
)
def test_arguments_are_checked(given: list[str], said: str) -> None:
    done = call_tiller("bench", *given)
    assert done.returncode == 2
    assert said in done.stderr


def test_no_server_is_one_line() -> None:
    done = call_tiller("bench", "--url", "http://127.0.0.1:9")
    assert done.returncode == 1
    assert done.stderr.startswith("tiller: no server answers at http://127.0.0.1:9")
