"""`tiller bench --url`: measures a running server."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from server.cli.bench.result import Progress, Result, numbers, shown
from server.cli.errors import USAGE, CommandFailed
from server.keys import CLIENT_VARIABLE

if TYPE_CHECKING:
    from server.bench.online import OnlineFigure, Requests


def measure_online(arguments: argparse.Namespace, environ: Mapping[str, str], progress: Progress) -> Result:
    """Measure the server at `--url`. Raises `CommandFailed`."""
    import asyncio

    import httpx

    from server.bench.online import Client, Load, Requests, run_online
    from vectors.client.clients import Server
    from vectors.client.errors import ClientError, InvalidConnection

    vectors = tuple(arguments.steer.split(",")) if arguments.steer else ()
    if arguments.rate is not None:
        arriving = [Load(None, rate) for rate in _rates(arguments.rate)]
    else:
        arriving = [Load(count, None) for count in numbers("--clients", arguments.clients)]
    loads = [Load(load.clients, load.rate, names) for load in arriving for names in ((), vectors)[: 1 + bool(vectors)]]
    body = _body(arguments.body)
    try:
        server = Server(arguments.url, environ.get(CLIENT_VARIABLE) or None)
    except InvalidConnection as error:
        raise CommandFailed(f"--url {arguments.url}: {error}", USAGE) from None

    async def run() -> tuple[Requests, list[OnlineFigure]]:
        async with Client(server.settings(httpx.Timeout(10.0, read=None))) as client:
            requests = Requests(
                arguments.model or await client.first_model(),
                arguments.requests,
                arguments.prompt_tokens,
                arguments.shared_tokens,
                arguments.new_tokens,
                body,
            )
            with progress(len(loads) * (arguments.repeats + 1)) as advance:
                return requests, await run_online(client, loads, requests, arguments.repeats, advance)

    try:
        with server.typed_failures():
            requests, figures = asyncio.run(run())
    except ClientError as error:
        raise CommandFailed(str(error)) from None
    except LookupError as error:
        raise CommandFailed(f"{server.url}: {error}") from None
    return _result(server.url, requests, arguments.repeats, figures)


def _rates(text: str) -> list[float]:
    try:
        rates = sorted({float(part) for part in text.split(",")})
    except ValueError:
        rates = []
    if not rates or not all(0 < rate < math.inf for rate in rates):
        raise CommandFailed(f"--rate: expected requests a second such as 0.5,2, got {text[:60]!r}", USAGE)
    return rates


def _body(text: str | None) -> Mapping[str, Any]:
    try:
        body = json.loads(text or "{}")
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise CommandFailed(f"--body: expected a JSON object, got {str(text)[:60]!r}", USAGE)
    return body


def _result(url: str, requests: Requests, repeats: int, figures: Sequence[OnlineFigure]) -> Result:
    title = f"{requests.model} at {url}"
    rows: list[Sequence[str]] = [
        (
            "load",
            "vectors",
            "answered",
            "tokens/s",
            "÷ unsteered",
            "first ms p50",
            "p95",
            "p99",
            "between ms p50",
            "p95",
            "p99",
        )
    ]
    foot = []
    for figure in figures:
        rows.append(
            (
                figure.load.name,
                str(len(figure.load.vectors) or "none"),
                f"{figure.num_requests - sum(figure.errors.values())}/{figure.num_requests}",
                shown(figure.tokens_per_second, ".1f"),
                "" if figure.ratio is None else shown(figure.ratio, ".3f"),
                *(shown(spread, ".0f", 1000) for spread in figure.first),
                *(shown(spread, ".1f", 1000) for spread in figure.between),
                *[""] * (6 - len(figure.first) - len(figure.between)),
            )
        )
        foot += [f"{figure.load.name}: {count} × {error}" for error, count in figure.errors.items()]
    for figure in figures[:1]:
        foot.append(
            f"{figure.prompt_tokens:.0f} tokens a prompt, {100 * figure.cached_share:.0f} % of them cached; "
            f"{figure.tokens_per_piece:.2f} tokens a piece of text"
        )

    def plot() -> bytes:
        from server.bench.plots import Measured, speeds

        measured = [
            Measured(f"{figure.load.name}, {len(figure.load.vectors) or 'no'} vectors", figure.tokens_per_second)
            for figure in figures
        ]
        return speeds(title, "tokens per second", measured)

    head = [title, f"medians of {repeats} interleaved repeats (smallest to largest)"]
    return Result(head, rows, foot, {**_about(url, requests, repeats), "figures": [f.to_json() for f in figures]}, plot)


def _about(url: str, requests: Requests, repeats: int) -> dict[str, Any]:
    return {
        "url": url,
        "model": requests.model,
        "prompt_words": requests.prompt_words,
        "shared_words": requests.shared_words,
        "new_tokens": requests.new_tokens,
        "repeats": repeats,
    }
