"""Rate limits for requests that generate or encode: per API key, or per client address where there are no keys."""

from __future__ import annotations

import math
from dataclasses import dataclass

from starlette.requests import Request

from server.api.http.auth import bearer_key, require
from server.api.http.client_address import address_of
from server.api.http.rate_limits import Allowance, RateLimits
from server.api.http.services import services_of
from server.errors import RateLimited
from server.keys import Role, digest_of

_check_use = require(Role.USE)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent a request: an API key, or a client address where there are no keys. `name` tells callers apart.

    `may_bring_directions`: in a request, instead of naming a vector of the registry.
    """

    name: bytes
    token_limits: RateLimits | None = None
    may_bring_directions: bool = False

    @property
    def owner(self) -> str:
        """Whose turn it is, wherever callers take turns."""
        return self.name.hex()

    def charge(self, num_tokens: int) -> None:
        """Count tokens that the model read or wrote for the caller."""
        if self.token_limits is not None:
            self.token_limits.charge(self.name, num_tokens)


def caller_of(request: Request) -> Caller:
    """Who sent the request, whose key has been checked."""
    services = services_of(request)
    if services.keys.is_open:
        return Caller(address_of(request), services.token_limits, may_bring_directions=True)
    key = bearer_key(request) or ""
    may_bring_directions = services.settings.inline_directions or services.keys.role_of(key) is Role.MANAGE
    return Caller(digest_of(key), services.token_limits, may_bring_directions)


async def limit_rate(request: Request) -> None:
    """A dependency of routes that generate or encode: counts the request, or raises `RateLimited`.

    Unauthorized callers are refused first, so that they cannot use up the requests of others. Reading an earlier
    result (a GET) is not counted.
    """
    services = services_of(request)
    if request.method != "POST" or (services.rate_limits is None and services.token_limits is None):
        return
    await _check_use(request)
    name = caller_of(request).name
    headers: dict[str, str] = {}
    if services.token_limits is not None:
        headers |= _checked(services.token_limits.look(name))
    if services.rate_limits is not None:
        headers |= _checked(services.rate_limits.take(name))
    request.state.response_headers = headers


def _checked(allowance: Allowance) -> dict[str, str]:
    """The headers that show the allowance. Raises `RateLimited` when nothing is left."""
    if allowance.wait_seconds > 0:
        raise RateLimited(
            f"rate limit of {allowance.limit} {allowance.unit} per minute exceeded; "
            f"retry in {math.ceil(allowance.wait_seconds)} s",
            headers=allowance.headers(),
        )
    return allowance.headers()
