"""What can go wrong between a client and a server. No message shows the key.

ClientError                     (a VectorsError)
├── InvalidConnection           the address or the key cannot be used; nothing was sent
├── ConnectionFailed            no server answers there, or the connection broke
│   └── TimedOut                the server did not answer in time
├── UnexpectedAnswer            the answer is not one of a tiller server
└── Refused                     status  the server refused, and said why
    ├── InvalidRequest          400     something in the request is wrong; `param` names it
    ├── Unauthorized            401     no key, or an unknown one
    ├── Forbidden               403     the key's role does not allow the call
    ├── NotFound                404     no such vector, or (`code`) no such revision
    ├── Conflict                409     the name is taken
    ├── PreconditionFailed      412     `if_match` or `if_none_match` does not hold; nothing was changed
    ├── PayloadTooLarge         413     the file is larger than the server accepts
    ├── Overloaded              429     the server has too much to do
    └── ServerFailure           5xx     the server failed, its disk is full (507), or it is starting or stopping
"""

from __future__ import annotations

from typing import Literal

from vectors.errors import VectorsError


class ClientError(VectorsError):
    """Base of everything that a call to a server raises; `str()` of it is a message for people."""


class InvalidConnection(ClientError):
    """The address or the key cannot be used, so nothing was sent. `param` says which; the message shows no key."""

    def __init__(self, message: str, param: Literal["base_url", "api_key"]) -> None:
        super().__init__(message)
        self.param = param


class ConnectionFailed(ClientError):
    """No server answers at the address, or the connection broke. A change may have been made anyway."""


class TimedOut(ConnectionFailed):
    """The server did not answer in time. A change may have been made anyway."""


class UnexpectedAnswer(ClientError):
    """The answer is not one of a tiller server. `status` is its HTTP status, if it had one."""

    def __init__(self, status: int | None = None) -> None:
        shown = "" if status is None else f" (HTTP {status})"
        super().__init__(f"the answer is not from a tiller server{shown}; is the address right?")
        self.status = status


class Refused(ClientError):
    """The server refused the call.

    `status` is HTTP's; `message`, `code` and `param` are those of OpenAI's error envelope: for people, for programs,
    and the dotted path of the field that is wrong.
    """

    def __init__(self, status: int, message: str, code: str | None = None, param: str | None = None) -> None:
        super().__init__(f"{message} (HTTP {status})")
        self.status = status
        self.message = message
        self.code = code
        self.param = param


class InvalidRequest(Refused):
    """Something in the request is wrong; `param` names it where it can."""


class Unauthorized(Refused):
    """No key was sent, or an unknown one."""


class Forbidden(Refused):
    """The key's role does not allow the call."""


class NotFound(Refused):
    """There is no such object; `code` says which: `vector_not_found`, `revision_not_found`, `unknown_url`."""


class Conflict(Refused):
    """The name is taken."""


class PreconditionFailed(Refused):
    """`if_match` or `if_none_match` does not hold, so nothing was changed."""


class PayloadTooLarge(Refused):
    """The file is larger than the server accepts."""


class Overloaded(Refused):
    """The server has too much to do; try again later."""


class ServerFailure(Refused):
    """The server failed, its disk is full (507), or it is starting or stopping."""


_BY_STATUS: dict[int, type[Refused]] = {
    400: InvalidRequest,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    412: PreconditionFailed,
    413: PayloadTooLarge,
    429: Overloaded,
}


def refused(status: int, message: str, code: str | None, param: str | None) -> Refused:
    """The error for a status; plain `Refused` for any other status."""
    kind = ServerFailure if status >= 500 else _BY_STATUS.get(status, Refused)
    return kind(status, message, code, param)
