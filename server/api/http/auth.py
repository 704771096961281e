"""Authorization: compares the role of a bearer key with the role that a route needs.

A manage key may do everything that a use key may. Without keys the server is open to every caller on this machine,
except web pages of other origins.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from dataclasses import dataclass

from starlette.requests import Request

from server.api.http.client_address import address_of
from server.api.http.services import Services, services_of
from server.errors import Forbidden, Unauthorized
from server.keys import Role, is_loopback

WRONG_KEY_SECONDS = 1.0
"""How long the answer to a wrong key takes from an address that has sent many. A valid key is never kept waiting."""

_AUTHORITY = re.compile(r"(\[(?P<ipv6>[0-9a-f:.]+)\]|(?P<name>[^\s:/?#@\[\]]+))(:[0-9]{1,5})?", re.IGNORECASE)
"""A host and perhaps a port, as browsers write both in Host and Origin: nothing before or after them."""

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(?P<authority>.*)", re.IGNORECASE)

_NOT_FOREIGN = frozenset({"same-origin", "same-site", "none"})
"""Values of Sec-Fetch-Site (Fetch Metadata Request Headers, W3C) of requests that no other site causes."""


@dataclass(frozen=True, slots=True)
class RoleCheck:
    """A dependency that refuses callers whose key does not allow `needed`."""

    needed: Role

    async def __call__(self, request: Request) -> None:
        """Raise `Unauthorized` or `Forbidden`."""
        services = services_of(request)
        keys = services.keys
        if keys.is_open:
            _refuse_foreign_origins(request, services)
            return
        key = bearer_key(request)
        if key is None:
            raise Unauthorized(
                "this server requires an API key; send the header Authorization: Bearer KEY",
                headers={"WWW-Authenticate": "Bearer"},
            )
        role = keys.role_of(key)
        if role is None:
            if services.wrong_keys.take(address_of(request)).wait_seconds > 0:
                await asyncio.sleep(WRONG_KEY_SECONDS)
            raise Unauthorized("the API key is invalid", headers={"WWW-Authenticate": "Bearer"})
        if self.needed is Role.MANAGE and role is not Role.MANAGE:
            raise Forbidden(
                "this API key may use the server, but not change its vectors, nor see its files and training jobs"
            )


def require(needed: Role) -> RoleCheck:
    """A dependency that refuses callers whose key does not allow `needed`."""
    return RoleCheck(needed)


def bearer_key(request: Request) -> str | None:
    """The key of the request, if any, valid or not."""
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    return key.strip() or None if scheme.lower() == "bearer" else None


def _refuse_foreign_origins(request: Request, services: Services) -> None:
    """Raise if the page or the host name of the request is foreign to a server without keys.

    A browser lets any site post to this machine, under any host name that the site points here. A page that
    `--cors-origin` lists is allowed, but only under this machine's own names. Browsers send Origin with everything but
    the GET and HEAD requests whose answers the page cannot read (Fetch standard, "append a request Origin header");
    these they mark with Sec-Fetch-Site.
    """
    if services.settings.insecure:
        return
    for host in _foreign_hosts(request, services):
        raise Forbidden(
            f"expected a host or origin of this machine, got {host[:100]!r}; a server without API keys allows only "
            "these, and the pages listed with --cors-origin",
            code="cross_origin",
        )


def _foreign_hosts(request: Request, services: Services) -> Iterator[str]:
    """What the headers of the request name that is not this machine."""
    host = request.headers.get("host", "")
    if not _is_own(host):
        yield host
    origins = request.headers.getlist("origin")
    for origin in origins:
        if origin not in services.settings.cors_origin:
            found = _ORIGIN.fullmatch(origin)
            if found is None or not _is_own(found["authority"]):
                yield origin
    if not origins:
        for site in request.headers.getlist("sec-fetch-site"):
            if site not in _NOT_FOREIGN:
                yield f"Sec-Fetch-Site: {site}"


def _is_own(authority: str) -> bool:
    found = _AUTHORITY.fullmatch(authority)
    return found is not None and is_loopback(found["ipv6"] or found["name"])
