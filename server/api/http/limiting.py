"""What generates counts: for the API key that it comes with, or for the client's address where there are no keys.

It knows callers by digests of keys and by addresses; how they are counted is `server.api.http.rate_limits`'.
"""

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
    """A dependency of what generates: counts the request, or raises `RateLimited`.

    Whoever may not ask at all is refused first, so that strangers use up nobody's requests. Reading what an earlier
    request left (a GET) counts for nothing.
    """
    services = services_of(request)
    if services.rate_limits is None or request.method != "POST":
        return
    await _check_use(request)
    allowance = services.rate_limits.take(_caller(request, is_open=services.keys.is_open))
    if allowance.wait_seconds > 0:
        raise RateLimited(
            f"more than {allowance.limit} requests a minute; try again in {math.ceil(allowance.wait_seconds)} s",
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
    if isinstance(address, ipaddress.IPv6Address):
        return address.ipv4_mapped.packed if address.ipv4_mapped else address.packed[:8]  # one line has 2**64 of them
    return address.packed
