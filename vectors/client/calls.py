"""Each call to a server's registry as a value: what is sent, and how its answer is read.

Nothing is sent here: the blocking and the asynchronous client share these calls.
"""

from __future__ import annotations

import base64
import json
import re
import sys
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from vectors.client.answers import (
    Answer,
    DamagedVector,
    RegisteredVector,
    check_deleted,
    file_in,
    listing_in,
    vector_in,
)
from vectors.client.errors import UnexpectedAnswer
from vectors.defaults import ChangedDefaults, CreatedDefaults, UploadedDefaults
from vectors.errors import InvalidRevision, InvalidVector, MissingDependency
from vectors.vocabulary import DEFAULT_FILE_FORMAT, Convention, FileFormat, check_name

if TYPE_CHECKING:  # a client of files and names needs no tensors
    from vectors.vector import SteeringVector

Order = Literal["asc", "desc"]

_ROOT = "/v1/steering/vectors"
_PAGE = 100  # the largest page that a server returns
_REVISION = re.compile(r"[0-9a-fA-F]{64}")

_Result_co = TypeVar("_Result_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Call(Generic[_Result_co]):
    """One request, and how to read its answer. `send`: query, headers and body as httpx names them."""

    method: str
    path: str
    read: Callable[[Answer], _Result_co]
    send: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Page:
    """Some vectors of a list, and the call for those after them; None when there are no more."""

    vectors: tuple[RegisteredVector | DamagedVector, ...]
    next: Call[Page] | None


class FileFacts(UploadedDefaults, total=False):
    """What a file does not say, or what should override it.

    `layer`: the block of a file of one direction, or the only one kept of several; `layers`: those kept; `row`: which
    of several alternatives for `layer`; `convention`: how the file counts its layers.
    """

    layer: int
    layers: Sequence[int] | str
    row: int
    convention: Convention


def list_page(order: Order, after: str | None = None) -> Call[Page]:
    """A page of the vectors by name."""

    def read(answer: Answer) -> Page:
        listing = listing_in(answer)
        if not listing.has_more:
            return Page(listing.data, None)
        last = listing.last_id
        if last is None or (after is not None and not (after < last if order == "asc" else last < after)):
            raise UnexpectedAnswer  # a page that does not advance would loop forever
        return Page(listing.data, list_page(order, last))

    query = {"limit": _PAGE, "order": order} | ({} if after is None else {"after": after})
    return Call("GET", _ROOT, read, {"params": query})


def get(name: str) -> Call[RegisteredVector]:
    """The current revision of a name, and its history."""
    return Call("GET", _path(name), vector_in)


def put(
    name: str, content: bytes, facts: FileFacts, if_match: str | None, if_none_match: Literal["*"] | None
) -> Call[RegisteredVector]:
    """A file as the current revision of a name."""
    headers = _precondition(if_match) | ({} if if_none_match is None else {"If-None-Match": if_none_match})
    if facts:
        parts = {"files": {"file": ("vector", content)}, "data": {"metadata": _json(facts)}}
        return Call("PUT", _path(name), vector_in, parts | {"headers": headers})
    headers["Content-Type"] = "application/octet-stream"
    return Call("PUT", _path(name), vector_in, {"content": content, "headers": headers})


def create(name: str, directions: Mapping[int, Iterable[float]], defaults: CreatedDefaults) -> Call[RegisteredVector]:
    """Create a vector from numbers under a new name. They are sent as float32, which is how they are stored."""
    numbers = {str(layer): _base64(layer, direction) for layer, direction in directions.items()}
    body = {**defaults, "name": check_name(name), "directions": numbers}
    return Call("POST", _ROOT, vector_in, _json_body(body))


def patch(name: str, changes: ChangedDefaults, if_match: str | None) -> Call[RegisteredVector]:
    """Change defaults or descriptions; the directions stay."""
    return Call("PATCH", _path(name), vector_in, _json_body(changes, _precondition(if_match)))


def rollback(name: str, revision: str, if_match: str | None) -> Call[RegisteredVector]:
    """Point a name back at a revision of its history."""
    send = _json_body({"revision": revision}, _precondition(if_match))
    return Call("POST", f"{_path(name)}/rollback", vector_in, send)


def delete(name: str, if_match: str | None) -> Call[None]:
    """Delete a name and its history."""
    return Call("DELETE", _path(name), check_deleted, {"headers": _precondition(if_match)})


def content(name: str, file_format: FileFormat, revision: str | None) -> Call[bytes]:
    """A revision as a file; the current one, when `revision` is None."""
    query = {"format": file_format} | ({} if revision is None else {"revision": revision})
    return Call("GET", f"{_path(name)}/content", file_in, {"params": query})


def vector(name: str, revision: str | None) -> Call[SteeringVector]:
    """A revision with its directions; the current one, when `revision` is None.

    Reading the answer raises `MissingDependency` if torch is not installed.
    """
    call = content(name, DEFAULT_FILE_FORMAT, revision)
    return Call(call.method, call.path, _decoded, call.send)


def _decoded(answer: Answer) -> SteeringVector:
    try:
        from vectors.formats import ImportOptions
        from vectors.formats.safetensors import decode_safetensors
    except ModuleNotFoundError as error:
        raise MissingDependency.of("reading a vector's tensors", error, "steer") from None
    try:
        return decode_safetensors(file_in(answer), ImportOptions())
    except InvalidVector:
        raise UnexpectedAnswer from None


def _path(name: str) -> str:
    return f"{_ROOT}/{check_name(name)}"  # a valid name needs no escaping in a path


def _precondition(if_match: str | None) -> dict[str, str]:
    if if_match is None:
        return {}
    if if_match != "*" and _REVISION.fullmatch(if_match) is None:
        raise InvalidRevision(f"if_match: expected a whole revision (64 hex digits) or '*', got {if_match[:80]!r}")
    return {"If-Match": if_match if if_match == "*" else f'"{if_match}"'}


def _json_body(body: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> dict[str, Any]:
    return {"content": _json(body), "headers": {"Content-Type": "application/json", **(headers or {})}}


def _json(body: Mapping[str, Any]) -> str:
    try:
        return json.dumps(body, allow_nan=False, default=dict)  # SteeringVector.metadata is a mapping, not a dict
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidVector(f"the vector's fields must be JSON with finite numbers: {error}") from None


def _base64(layer: int, direction: Iterable[float]) -> str:
    try:
        packed = array("f", iter(direction))
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidVector(f"directions.{layer} must be numbers: {error}", f"directions.{layer}") from None
    if sys.byteorder == "big":
        packed.byteswap()
    return base64.b64encode(packed.tobytes()).decode()
