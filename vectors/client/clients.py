"""A tiller server's registry of steering vectors from Python: `VectorClient`, and `AsyncVectorClient` for asyncio.

Use OpenAI's SDK for everything else: chats, completions, files, training jobs. What is sent and how answers are read is
in `calls`.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, Unpack

import httpx
from anyio.to_thread import run_sync

from vectors.client import calls
from vectors.client.answers import Answer, DamagedVector, HistoryEntry, RegisteredVector, refusal_in
from vectors.client.calls import Call, FileFacts, Order
from vectors.client.errors import ClientError, ConnectionFailed, InvalidConnection, TimedOut, UnexpectedAnswer
from vectors.defaults import ChangedDefaults, CreatedDefaults
from vectors.formats.packing import read_file_or_folder
from vectors.vocabulary import DEFAULT_FILE_FORMAT, FileFormat

if TYPE_CHECKING:  # a client of files and names needs no tensors
    from vectors.vector import SteeringVector

__all__ = [
    "AsyncVectorClient",
    "ClientError",
    "Connection",
    "DamagedVector",
    "HistoryEntry",
    "RegisteredVector",
    "VectorClient",
]

DEFAULT_TIMEOUT = 60.0
"""Seconds to wait for a connection, and for each read or write on it."""

_Result = TypeVar("_Result")


class Server:
    """A server's address and the key to it, without a connection. Raises `InvalidConnection`.

    `base_url` may end in `/v1`, as for OpenAI's SDK.
    """

    def __init__(self, base_url: str, api_key: str | None) -> None:
        try:
            url = httpx.URL(base_url.rstrip("/").removesuffix("/v1"))
        except httpx.InvalidURL as error:
            raise InvalidConnection(str(error), "base_url") from None
        if url.scheme not in ("http", "https") or not url.host:
            raise InvalidConnection("expected an http:// or https:// URL with a host", "base_url")
        if url.userinfo:
            raise InvalidConnection("expected a URL without user name and password; pass a key as api_key", "base_url")
        if api_key is not None and not (api_key and all("!" <= character <= "~" for character in api_key)):
            raise InvalidConnection("expected a key of printable ASCII characters without spaces", "api_key")
        self.url = str(url)
        self._key = api_key

    def settings(self, timeout: float | httpx.Timeout) -> dict[str, Any]:
        """The arguments of an httpx client for this server."""
        headers = {} if self._key is None else {"Authorization": f"Bearer {self._key}"}
        return {"base_url": self.url, "headers": headers, "timeout": timeout}

    @contextlib.contextmanager
    def typed_failures(self) -> Iterator[None]:
        """Turn what httpx raises within the context into a `ClientError`."""
        try:
            yield
        except (httpx.ConnectError, UnicodeError):  # UnicodeError: a host name that cannot be encoded
            raise ConnectionFailed(f"no server answers at {self.url}: is 'tiller serve' running?") from None
        except httpx.TimeoutException:
            raise TimedOut(f"{self.url} did not answer in time") from None
        except httpx.DecodingError:
            raise UnexpectedAnswer from None
        except httpx.HTTPError as error:
            raise ConnectionFailed(f"{self.url}: {self._shown(str(error) or type(error).__name__)}") from None

    def accepted(self, response: httpx.Response) -> Answer:
        """The answer in a successful response that was read. Raises `refusal_of` any other."""
        if not response.is_success:
            raise self.refusal_of(response)
        return _answer_of(response)

    def refusal_of(self, response: httpx.Response) -> ClientError:
        """The error in an unsuccessful response that was read."""
        return refusal_in(_answer_of(response), self._shown)

    def _shown(self, text: str) -> str:
        return text if self._key is None else text.replace(self._key, "[key]")  # an answer may echo it


class Connection:
    """HTTP to one server. Every failure is a `ClientError`. `close` it, or use it as a context manager."""

    def __init__(
        self, base_url: str, api_key: str | None = None, *, timeout: float | httpx.Timeout = DEFAULT_TIMEOUT
    ) -> None:
        self._server = Server(base_url, api_key)
        self._http = httpx.Client(**self._server.settings(timeout))

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _answer(self, method: str, path: str, **send: Any) -> Answer:
        with self._server.typed_failures():
            response = self._http.request(method, path, **send)
        return self._server.accepted(response)


class VectorClient(Connection):
    """The registry of the server at `base_url`; may be used by several threads.

    Every failure is a `ClientError`, usually a `Refused` that says why. Arguments that are wrong before anything is
    sent raise `InvalidVectorName`, `InvalidRevision` or `InvalidVector`. `if_match` is the revision (64 hex digits)
    that must be the current one, or "*"; otherwise nothing is changed and `PreconditionFailed` is raised.
    """

    def list(self, *, order: Order = "asc") -> Iterator[RegisteredVector | DamagedVector]:
        """Every vector in order of names, damaged ones too; pages are fetched as they are needed."""
        page: Call[calls.Page] | None = calls.list_page(order)
        while page is not None:
            found = self._carry_out(page)
            yield from found.vectors
            page = found.next

    def get(self, name: str) -> RegisteredVector:
        """The current revision of `name`, with its history."""
        return self._carry_out(calls.get(name))

    def put(
        self,
        name: str,
        file: bytes | Path,
        *,
        if_match: str | None = None,
        if_none_match: Literal["*"] | None = None,
        **facts: Unpack[FileFacts],
    ) -> RegisteredVector:
        """Make a file of any format in docs/vectors.md, or a library's folder, the current revision of `name`.

        `facts` add what the file does not say, or override it. `if_none_match="*"`: only if the name is free. Raises
        `OSError` when the file cannot be read, and `InvalidVector` for a folder without tensors.
        """
        return self._carry_out(calls.put(name, _read(file), facts, if_match, if_none_match))

    def create(
        self, name: str, directions: Mapping[int, Iterable[float]], **defaults: Unpack[CreatedDefaults]
    ) -> RegisteredVector:
        """Create a vector from numbers by layer, each direction `[hidden]`; `name` must be free."""
        return self._carry_out(calls.create(name, directions, defaults))

    def patch(self, name: str, *, if_match: str | None = None, **changes: Unpack[ChangedDefaults]) -> RegisteredVector:
        """Change defaults and descriptions of `name`, as a new revision; the directions stay."""
        return self._carry_out(calls.patch(name, changes, if_match))

    def rollback(self, name: str, revision: str, *, if_match: str | None = None) -> RegisteredVector:
        """Point `name` back at a revision of its history, given by at least the first 6 digits of its hash."""
        return self._carry_out(calls.rollback(name, revision, if_match))

    def content(self, name: str, format: FileFormat = DEFAULT_FILE_FORMAT, *, revision: str | None = None) -> bytes:
        """The current revision of `name`, or the one whose hash begins with `revision`, as a file."""
        return self._carry_out(calls.content(name, format, revision))

    def vector(self, name: str, *, revision: str | None = None) -> SteeringVector:
        """The current revision of `name`, or the one whose hash begins with `revision`, with its directions."""
        return self._carry_out(calls.vector(name, revision))

    def delete(self, name: str, *, if_match: str | None = None) -> None:
        """Delete `name` and its history."""
        self._carry_out(calls.delete(name, if_match))

    def _carry_out(self, call: Call[_Result]) -> _Result:
        return call.read(self._answer(call.method, call.path, **call.send))


class AsyncVectorClient:
    """`VectorClient` for asyncio: the same methods, arguments, results and errors, and an async context manager."""

    def __init__(
        self, base_url: str, api_key: str | None = None, *, timeout: float | httpx.Timeout = DEFAULT_TIMEOUT
    ) -> None:
        self._server = Server(base_url, api_key)
        self._http = httpx.AsyncClient(**self._server.settings(timeout))

    async def close(self) -> None:
        """Close the connection."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def list(self, *, order: Order = "asc") -> AsyncIterator[RegisteredVector | DamagedVector]:
        """See `VectorClient.list`; to be used with `async for`."""
        page: Call[calls.Page] | None = calls.list_page(order)
        while page is not None:
            found = await self._carry_out(page)
            for vector in found.vectors:
                yield vector
            page = found.next

    async def get(self, name: str) -> RegisteredVector:
        """See `VectorClient.get`."""
        return await self._carry_out(calls.get(name))

    async def put(
        self,
        name: str,
        file: bytes | Path,
        *,
        if_match: str | None = None,
        if_none_match: Literal["*"] | None = None,
        **facts: Unpack[FileFacts],
    ) -> RegisteredVector:
        """See `VectorClient.put`."""
        content = await run_sync(_read, file)
        return await self._carry_out(calls.put(name, content, facts, if_match, if_none_match))

    async def create(
        self, name: str, directions: Mapping[int, Iterable[float]], **defaults: Unpack[CreatedDefaults]
    ) -> RegisteredVector:
        """See `VectorClient.create`."""
        return await self._carry_out(calls.create(name, directions, defaults))

    async def patch(
        self, name: str, *, if_match: str | None = None, **changes: Unpack[ChangedDefaults]
    ) -> RegisteredVector:
        """See `VectorClient.patch`."""
        return await self._carry_out(calls.patch(name, changes, if_match))

    async def rollback(self, name: str, revision: str, *, if_match: str | None = None) -> RegisteredVector:
        """See `VectorClient.rollback`."""
        return await self._carry_out(calls.rollback(name, revision, if_match))

    async def content(
        self, name: str, format: FileFormat = DEFAULT_FILE_FORMAT, *, revision: str | None = None
    ) -> bytes:
        """See `VectorClient.content`."""
        return await self._carry_out(calls.content(name, format, revision))

    async def vector(self, name: str, *, revision: str | None = None) -> SteeringVector:
        """See `VectorClient.vector`."""
        return await self._carry_out(calls.vector(name, revision))

    async def delete(self, name: str, *, if_match: str | None = None) -> None:
        """See `VectorClient.delete`."""
        await self._carry_out(calls.delete(name, if_match))

    async def _carry_out(self, call: Call[_Result]) -> _Result:
        with self._server.typed_failures():
            response = await self._http.request(call.method, call.path, **call.send)
        return await run_sync(call.read, self._server.accepted(response))  # decoding tensors would block the event loop


def _answer_of(response: httpx.Response) -> Answer:
    return Answer(response.status_code, response.headers.get("Content-Type", ""), response.content)


def _read(file: bytes | Path) -> bytes:
    return file if isinstance(file, bytes) else read_file_or_folder(Path(file))
