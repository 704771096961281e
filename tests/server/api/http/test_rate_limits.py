"""Each key has its own requests a minute; who must wait is told for how long, and strangers use up nobody's."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from server.api.http.rate_limits import MAX_BUCKETS, RateLimits
from server.keys import ApiKeys
from tests.server.api.serving import Server, serving

LIMIT = 3
HELLO: Any = [{"role": "user", "content": "hi"}]
PROMPT: dict[str, Any] = {"prompt": "a", "max_tokens": 1}


class Clock:
    """A time that passes when the test says so."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_caller_gets_what_a_bucket_gives() -> None:
    """Against the plain meaning: tokens that drip in evenly, never more than a minute's worth."""
    clock, drawing = Clock(), random.Random(3)
    limits = RateLimits(60, clock)
    left, allowed = 60.0, 0
    for _ in range(2000):
        passed = drawing.choice([0.0, 0.25, 0.5, 1.0, 2.0])  # exact in binary
        clock.now += passed
        left = min(60.0, left + passed)
        allowance = limits.take(b"one")
        assert (allowance.wait_seconds == 0) == (left >= 1)
        if left >= 1:
            left -= 1
            allowed += 1
            assert "Retry-After" not in allowance.headers()
        else:
            assert allowance.wait_seconds == 1 - left
            assert float(allowance.headers()["Retry-After"]) >= allowance.wait_seconds
        assert allowance.remaining == int(left)
        assert allowance.reset_seconds == 60 - left
    assert 1000 < allowed < 1900


def test_callers_do_not_share() -> None:
    limits = RateLimits(1, Clock())
    assert [limits.take(caller).wait_seconds for caller in (b"one", b"two", b"one")] == [0, 0, 60]


def test_times_are_written_as_openai_writes_them() -> None:
    clock = Clock()
    limits = RateLimits(1, clock)
    shown = []
    for passed in (0.0, 51.36, 8.63, 0.01):
        clock.now += passed
        limits.take(b"one")
        left_after = limits.take(b"one")
        shown.append(left_after.headers()["x-ratelimit-reset-requests"])
    assert shown == ["1m0s", "8.64s", "10ms", "1m0s"]


def test_memory_is_bounded_and_who_came_last_is_known() -> None:
    limits = RateLimits(1, Clock())
    for number in range(2 * MAX_BUCKETS):
        limits.take(str(number).encode())
    assert len(limits) == MAX_BUCKETS
    assert limits.take(str(2 * MAX_BUCKETS - 1).encode()).wait_seconds > 0


@pytest.fixture
def limited(tmp_path: Path) -> Iterator[Server]:
    """A server with a low limit and two keys."""
    keys = ApiKeys(use=["first-key"], manage=["second-key"])
    with serving(tmp_path, keys=keys, rate_limit=LIMIT) as running:
        yield running


def ask(server: Server, key: str, path: str = "/v1/completions", body: Any = None) -> httpx.Response:
    """A request with this key."""
    return server.http.post(path, json=body or PROMPT, headers={"Authorization": f"Bearer {key}"})


def test_a_key_that_asks_too_often_is_429_and_the_other_is_not(limited: Server) -> None:
    remaining = []
    for _ in range(LIMIT):
        response = ask(limited, "first-key")
        assert response.status_code == 200
        assert response.headers["x-ratelimit-limit-requests"] == str(LIMIT)
        assert "retry-after" not in response.headers
        remaining.append(response.headers["x-ratelimit-remaining-requests"])
    assert remaining == ["2", "1", "0"]
    refused = ask(limited, "first-key")
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert 1 <= int(refused.headers["retry-after"]) <= 60 / LIMIT
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    assert refused.headers["x-ratelimit-reset-requests"]
    assert "first-key" not in refused.text
    assert ask(limited, "second-key").status_code == 200


def test_all_that_generates_or_encodes_counts_together(limited: Server) -> None:
    assert ask(limited, "first-key", "/v1/chat/completions", {"messages": HELLO, "max_tokens": 1}).status_code == 200
    assert ask(limited, "first-key", "/tokenize", {"prompt": "a"}).status_code == 200
    assert ask(limited, "second-key", "/v1/completions", {"prompt": "a", "n": 0}).status_code == 400
    assert ask(limited, "second-key").headers["x-ratelimit-remaining-requests"] == str(LIMIT - 2)
    stream = ask(limited, "first-key", body=PROMPT | {"stream": True})
    assert (stream.status_code, stream.headers["x-ratelimit-remaining-requests"]) == (200, "0")
    with openai.OpenAI(base_url=f"{limited.url}/v1", api_key="first-key", max_retries=0) as client:
        with pytest.raises(openai.RateLimitError) as caught:
            client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=1)
        assert caught.value.code == "rate_limit_exceeded"
        assert client.models.list().data  # reading is not limited


def test_a_wrong_key_is_401_however_often(limited: Server) -> None:
    for _ in range(LIMIT + 2):
        assert ask(limited, "wrong").status_code == 401
    assert ask(limited, "first-key").headers["x-ratelimit-remaining-requests"] == str(LIMIT - 1)


def test_without_keys_each_address_has_its_own(tmp_path: Path) -> None:
    with serving(tmp_path, rate_limit=LIMIT) as server:
        assert (
            server.http.post("/v1/completions", json=PROMPT, headers={"Origin": "https://evil.example"}).status_code
            == 403
        )

        def remaining(address: str) -> str:
            """Of a client behind a proxy on this machine."""
            answer = server.http.post("/v1/completions", json=PROMPT, headers={"X-Forwarded-For": address})
            return str(answer.headers["x-ratelimit-remaining-requests"])

        addresses = ["192.0.2.1", "192.0.2.2", "192.0.2.1", "2001:db8::1", "2001:db8::2", "2001:db8:0:1::1"]
        addresses += ["::ffff:192.0.2.1", "::ffff:192.0.2.9"]
        assert [remaining(address) for address in addresses] == ["2", "2", "1", "2", "1", "2", "0", "2"]


def test_without_the_option_there_is_no_limit(server: Server) -> None:
    response = server.http.post("/v1/completions", json=PROMPT)
    assert not [name for name in response.headers if name.startswith("x-ratelimit")]


def test_a_debt_is_made_up_for_before_anything_more_is_allowed() -> None:
    clock = Clock()
    limits = RateLimits(60, clock, unit="tokens")
    assert limits.look(b"one").wait_seconds == 0
    limits.charge(b"one", 100)
    owed = limits.look(b"one")
    assert (owed.wait_seconds, owed.remaining, owed.reset_seconds) == (41, 0, 100)
    assert owed.headers()["x-ratelimit-remaining-tokens"] == "0"
    assert limits.look(b"two").wait_seconds == 0
    clock.now += 41
    assert (limits.look(b"one").wait_seconds, limits.look(b"one").remaining) == (0, 1)


SPENDING: list[tuple[str, dict[str, Any], int]] = [
    ("/v1/completions", {"prompt": "abcd", "n": 3, "max_tokens": 10, "ignore_eos": True}, 34),
    ("/v1/completions", {"prompt": "abcd", "max_tokens": 10, "ignore_eos": True, "stream": True}, 14),
    ("/v1/completions", {"prompt": ["ab", "cd"], "max_tokens": 1, "logprobs": 1, "echo": True}, 10),
    ("/v1/decisions", {"input": "x", "questions": [{"type": "predicate", "instructions": "Is it?"}]}, 100),
]


@pytest.mark.parametrize(("path", "body", "least"), SPENDING)
def test_tokens_are_counted_for_their_key_alone(tmp_path: Path, path: str, body: dict[str, Any], least: int) -> None:
    with serving(tmp_path, keys=ApiKeys(use=["first-key", "second-key"]), token_limit=least) as server:
        answer = ask(server, "first-key", path, body)
        assert answer.status_code == 200
        assert answer.headers["x-ratelimit-remaining-tokens"] == str(least)
        refused = ask(server, "first-key", path, body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
        assert f"{least} tokens per minute" in refused.json()["error"]["message"]
        assert int(refused.headers["retry-after"]) >= 1
        assert ask(server, "second-key", path, body).status_code == 200
