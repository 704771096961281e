"""Rate limits for requests that generate: per API key, or per client address where there are no keys."""

from __future__ import annotations

import ipaddress
import math

from starlette.requests import Request

from server.api.http.auth import bearer_key, require
from server.api.http.services import services_of
from server.errors import RateLimited
from server.keys import Role, digest_of

_check_use = require(Role.USE)


async def limit_rate(request: Request) -> None:
    """A dependency of routes that generate: counts the request, or raises `RateLimited`.

    Unauthorized callers are refused first, so that they cannot use up the requests of others. Reading an earlier
    result (a GET) is not counted.
    """
    services = services_of(request)
    if services.rate_limits is None or request.method != "POST":
        return
    await _check_use(request)
    allowance = services.rate_limits.take(_caller(request, is_open=services.keys.is_open))
    if allowance.wait_seconds > 0:
        raise RateLimited(
            f"rate limit of {allowance.limit} requests per minute exceeded; "
            f"retry in {math.ceil(allowance.wait_seconds)} s",
            headers=allowance.headers(),
        )
    request.state.response_headers = allowance.headers()


def _caller(request: Request, *, is_open: bool) -> bytes:
    if not is_open:
        return digest_of(bearer_key(request) or "")
    host = request.client.host if request.client is not None else ""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host.encode()
    if isinstance(address, ipaddress.IPv6Address):  # one subscriber has 2**64 of them
        return address.ipv4_mapped.packed if address.ipv4_mapped else address.packed[:8]
    return address.packed
