"""Who may call what: a bearer key's role against the role that a route needs.

A manage key may do whatever a use key may. Without keys the server is open to whoever reaches it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.requests import Request

from server.api.services import services_of
from server.errors import Forbidden, Unauthorized
from server.keys import Role


def require(needed: Role) -> Callable[[Request], Awaitable[None]]:
    """A dependency that refuses callers whose key does not allow `needed`."""

    async def check(request: Request) -> None:
        keys = services_of(request).keys
        if keys.is_open:
            return
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise Unauthorized(
                "this server needs an API key: Authorization: Bearer KEY", headers={"WWW-Authenticate": "Bearer"}
            )
        role = keys.role_of(key.strip())
        if role is None:
            raise Unauthorized("the API key is not valid", headers={"WWW-Authenticate": "Bearer"})
        if needed is Role.MANAGE and role is not Role.MANAGE:
            raise Forbidden("this API key may use the server and not change its vectors")

    return check
