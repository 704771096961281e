"""Reads uploads: a file's bytes, the parts of a form, or numbers in JSON."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Annotated, Any, NotRequired, TypeVar

import numpy as np
import torch
from anyio.to_thread import run_sync
from pydantic import WithJsonSchema
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request
from torch import Tensor
from typing_extensions import TypedDict

from server.api.http.bodies import limited_stream, parse_json, read_body
from server.errors import InvalidRequest
from server.steering.inline import decoded_direction
from vectors.durable import storing
from vectors.formats import ImportOptions
from vectors.vocabulary import MAX_LAYER, MAX_METADATA_BYTES

_Value = TypeVar("_Value")
_MAX_METADATA_PART = 2 * MAX_METADATA_BYTES


class VectorForm(TypedDict):
    """The parts of a multipart upload. `metadata` is JSON and overrides the metadata in the file."""

    file: Annotated[bytes, WithJsonSchema({"type": "string", "format": "binary"})]
    metadata: NotRequired[Annotated[str, WithJsonSchema({"type": "string", "contentMediaType": "application/json"})]]


async def read_upload(request: Request, limit: int) -> tuple[bytes, ImportOptions]:
    """The uploaded file and its options.

    The body is the file itself, or multipart with the parts `file` and optionally `metadata` (JSON). Raises
    `PayloadTooLarge` if the announced length exceeds `limit`, else as soon as more than `limit` bytes arrive.
    """
    kind, _ = parse_options_header(request.headers.get("content-type"))
    if kind == b"application/json":
        raise InvalidRequest(
            "Content-Type: expected application/octet-stream or multipart/form-data; "
            "send numbers in JSON to POST /v1/steering/vectors",
            code="invalid_header",
            param="Content-Type",
        )
    if kind != b"multipart/form-data":
        return await read_body(request, limit), ImportOptions()
    async with multipart_form(request, limit, max_fields=2, max_field_bytes=_MAX_METADATA_PART) as form:
        return await _parts_of(form)


@contextlib.asynccontextmanager
async def multipart_form(
    request: Request, limit: int, *, max_fields: int, max_field_bytes: int
) -> AsyncIterator[FormData]:
    """The parts of a multipart body, with large files on disk; removed when the context ends.

    Raises `InvalidRequest` for a malformed body, `PayloadTooLarge` as `limited_stream` does, and `StorageFull` and
    `StorageFailed` for the disk of temporary files.
    """
    _, parameters = parse_options_header(request.headers.get("content-type"))
    if parameters.get(b"charset", b"utf-8").lower() not in (b"utf-8", b"utf8"):
        raise InvalidRequest("Content-Type: expected the charset utf-8", code="invalid_header", param="Content-Type")
    parser = _WholeForm(
        request.headers,
        limited_stream(request, limit),
        max_files=2,
        max_fields=max_fields,
        max_part_size=max_field_bytes,
    )
    try:
        with storing("uploads while they arrive"):
            form = await parser.parse()
    except MultiPartException as error:
        raise InvalidRequest(f"the multipart body is malformed: {error.message}", code="invalid_multipart") from None
    if not parser.is_whole:
        parser.close_files()
        raise InvalidRequest("the multipart body ends before its last boundary", code="invalid_multipart")
    try:
        yield form
    finally:
        await form.close()


class _WholeForm(MultiPartParser):
    """Starlette's parser, which by itself takes a truncated body for a form without its last part."""

    is_whole = False

    def on_end(self) -> None:
        self.is_whole = True

    def close_files(self) -> None:
        """Close the files of incomplete parts, which no form holds."""
        for file in self._files_to_close_on_error:
            file.close()


async def _parts_of(form: FormData) -> tuple[bytes, ImportOptions]:
    names = [name for name, _ in form.multi_items()]
    for name in names:
        if names.count(name) > 1:
            raise InvalidRequest(f"{name[:60]}: given more than once", code="invalid_value", param=name[:60])
        if name not in ("file", "metadata"):
            raise InvalidRequest(
                f"{name[:60]}: expected one of the parts file, metadata", code="unknown_parameter", param=name[:60]
            )
    file, metadata = form.get("file"), form.get("metadata")
    if not isinstance(file, UploadFile):
        raise InvalidRequest("file: missing required part", code="missing_required_parameter", param="file")
    if metadata is None:
        return await file.read(), ImportOptions()
    text = metadata.encode() if isinstance(metadata, str) else await metadata.read(_MAX_METADATA_PART + 1)
    if len(text) > _MAX_METADATA_PART:
        raise InvalidRequest(
            f"metadata: expected at most {_MAX_METADATA_PART} bytes, got more", code="invalid_value", param="metadata"
        )
    options = await run_sync(lambda: ImportOptions.from_json(parse_json(text, "metadata")))
    return await file.read(), options


def directions_of(given: dict[str, Any], name: str, *, num_layers: int, hidden_size: int) -> dict[int, Tensor]:
    """`{"12": [floats] or base64 of little-endian float32}` -> float32 tensors `[hidden_size]` by layer.

    Vectors of another size are refused before they are converted; errors call the field `name`.
    """
    return {
        layer: _direction_of(numbers, hidden_size, f"{name}.{layer}")
        for layer, numbers in layers_of(given, name, num_layers)
    }


def layers_of(given: Mapping[str, _Value], name: str, num_layers: int) -> list[tuple[int, _Value]]:
    """The entries of the field `name`, an object of at most `num_layers` layers, by layer."""
    if len(given) > num_layers:
        raise _invalid(f"{name}: expected at most {num_layers} layers, got {len(given)}", name)
    found: dict[int, _Value] = {}
    for key, value in given.items():
        param = f"{name}.{key[:20]}"
        if not (key.isascii() and key.isdigit() and len(key) <= 4 and int(key) <= MAX_LAYER):
            raise _invalid(f"{param}: expected a layer number", param)
        if int(key) in found:
            raise _invalid(f"{param}: the layer is given more than once", param)
        found[int(key)] = value
    return list(found.items())


def _direction_of(numbers: Any, hidden_size: int, param: str) -> Tensor:
    if isinstance(numbers, list):
        if len(numbers) != hidden_size:
            message = f"{param}: expected {hidden_size} numbers (the model's hidden size), got {len(numbers)}"
            raise _invalid(message, param)
        if not all(type(number) in (int, float) for number in numbers):
            raise _invalid(f"{param}: expected only numbers in the list", param)
        try:
            with np.errstate(over="ignore"):  # an overflow becomes infinity, which is refused later
                values = np.array(numbers, dtype=np.float64).astype(np.float32)
        except OverflowError:
            raise _invalid(f"{param}: a number is too large", param) from None
        return torch.from_numpy(values)
    if isinstance(numbers, str):
        direction = decoded_direction(numbers, hidden_size)
        if direction is not None:
            return direction
        raise _invalid(f"{param}: expected base64 of {hidden_size} little-endian float32 numbers", param)
    raise _invalid(f"{param}: expected a list of numbers, or base64 of little-endian float32 numbers", param)


def _invalid(message: str, param: str) -> InvalidRequest:
    return InvalidRequest(message, code="invalid_vector", param=param)
