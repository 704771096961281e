"""Who may call what: a bearer key's role against the role that a route needs.

A manage key may do whatever a use key may. Without keys the server is open to whoever reaches it on this machine,
but for web pages from elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.requests import Request

from server.api.http.services import Services, services_of
from server.errors import Forbidden, Unauthorized
from server.keys import KeysRefused, Role, check_exposure


@dataclass(frozen=True, slots=True)
class RoleCheck:
    """A dependency that refuses callers whose key does not allow `needed`."""

    needed: Role

    async def __call__(self, request: Request) -> None:
        """Raise `Unauthorized` or `Forbidden`."""
        services = services_of(request)
        keys = services.keys
        if keys.is_open:
            _refuse_strangers(request, services)
            return
        key = bearer_key(request)
        if key is None:
            raise Unauthorized(
                "this server needs an API key: Authorization: Bearer KEY", headers={"WWW-Authenticate": "Bearer"}
            )
        role = keys.role_of(key)
        if role is None:
            raise Unauthorized("the API key is not valid", headers={"WWW-Authenticate": "Bearer"})
        if self.needed is Role.MANAGE and role is not Role.MANAGE:
            raise Forbidden("this API key may use the server, and change none of its vectors, files and training jobs")


def require(needed: Role) -> RoleCheck:
    """A dependency that refuses callers whose key does not allow `needed`."""
    return RoleCheck(needed)


def bearer_key(request: Request) -> str | None:
    """The key that the request brings, if any, valid or not."""
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    return key.strip() or None if scheme.lower() == "bearer" else None


def _refuse_strangers(request: Request, services: Services) -> None:
    """Raise for a page or a name on which a server without keys may not listen.

    A browser sends a page's posts to this machine for any site, and to any name that a site lets point here. A page
    that `--cors-origin` names is no stranger, but only under this machine's own names.
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
                f"{authority[:100]!r} is not this machine: without API keys only its own names and pages are answered, "
                "and pages that --cors-origin names",
                code="cross_origin",
            ) from None
