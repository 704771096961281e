"""Authorization: compares the role of a bearer key with the role that a route needs.

A manage key may do everything that a use key may. Without keys the server is open to every caller on this machine,
except web pages of other origins.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.requests import Request

from server.api.http.client_address import address_of
from server.api.http.services import Services, services_of
from server.errors import Forbidden, Unauthorized
from server.keys import KeysRefused, Role, check_exposure

WRONG_KEY_SECONDS = 1.0
"""How long the answer to a wrong key takes from an address that has sent many. A valid key is never kept waiting."""


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
    `--cors-origin` lists is allowed, but only under this machine's own names.
    """
    origin = request.headers.get("origin")
    authorities = [request.headers.get("host", "")]
    if origin is not None and origin not in services.settings.cors_origin:
        authorities.append(origin.partition("://")[2])
    for authority in authorities:
        try:
            check_exposure(urlsplit(f"//{authority}").hostname or "", services.keys, services.settings.insecure)
        except (KeysRefused, ValueError):
            raise Forbidden(
                f"expected a host or origin of this machine, got {authority[:100]!r}; a server without API keys allows "
                "only these, and the pages listed with --cors-origin",
                code="cross_origin",
            ) from None
