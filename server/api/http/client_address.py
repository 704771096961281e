"""The client's address, as limits count by it."""

from __future__ import annotations

import ipaddress

from starlette.requests import Request


def address_of(request: Request) -> bytes:
    """The address of the client, or its network where one subscriber has many addresses."""
    host = request.client.host if request.client is not None else ""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host.encode()
    if isinstance(address, ipaddress.IPv6Address):  # one subscriber has 2**64 of them
        return address.ipv4_mapped.packed if address.ipv4_mapped else address.packed[:8]
    return address.packed
