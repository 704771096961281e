"""Uploaded vectors as they come over the wire: a file's bytes, or numbers in JSON. Knows no file format."""

from __future__ import annotations

import base64
import binascii
from typing import Any

import numpy as np
import torch
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request
from torch import Tensor

from server.api.bodies import limited_stream, parse_json, read_body
from server.errors import InvalidRequest
from vectors.formats import ImportOptions
from vectors.vector import MAX_LAYER, MAX_METADATA_BYTES


async def read_upload(request: Request, limit: int) -> tuple[bytes, ImportOptions]:
    """The uploaded file and what the upload says about it.

    The body is the file itself, or multipart with the parts `file` and, if wanted, `metadata` (JSON). Raises
    `PayloadTooLarge` unread when a larger length is announced, else as soon as more than `limit` bytes came.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        raise InvalidRequest(
            "Content-Type: a file is application/octet-stream or multipart/form-data; "
            "numbers in JSON go to POST /v1/steering/vectors",
            code="invalid_header",
            param="Content-Type",
        )
    if kind != "multipart/form-data":
        return await read_body(request, limit), ImportOptions()
    parser = MultiPartParser(
        request.headers,
        limited_stream(request, limit),
        max_files=2,
        max_fields=2,
        max_part_size=2 * MAX_METADATA_BYTES,
    )
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise InvalidRequest(f"the multipart body is malformed: {error.message}", code="invalid_multipart") from None
    except KeyError:
        raise InvalidRequest(
            "Content-Type: multipart/form-data needs a boundary", code="invalid_header", param="Content-Type"
        ) from None
    try:
        return await _parts_of(form)
    finally:
        await form.close()


async def _parts_of(form: FormData) -> tuple[bytes, ImportOptions]:
    names = [name for name, _ in form.multi_items()]
    for name in names:
        if names.count(name) > 1:
            raise InvalidRequest(f"{name[:60]}: given more than once", code="invalid_value", param=name[:60])
        if name not in ("file", "metadata"):
            raise InvalidRequest(
                f"{name[:60]}: unknown part; there are file and metadata", code="unknown_parameter", param=name[:60]
            )
    file, metadata = form.get("file"), form.get("metadata")
    if not isinstance(file, UploadFile):
        raise InvalidRequest("file: required and missing", code="missing_required_parameter", param="file")
    if metadata is None:
        return await file.read(), ImportOptions()
    text = metadata.encode() if isinstance(metadata, str) else await metadata.read()
    return await file.read(), ImportOptions.from_json(parse_json(text, "metadata"))


def directions_of(given: dict[str, Any]) -> dict[int, Tensor]:
    """`{"12": [floats] or base64 of little-endian float32}` -> float32 tensors by layer."""
    directions: dict[int, Tensor] = {}
    for key, numbers in given.items():
        param = f"directions.{key[:20]}"
        if not (key.isascii() and key.isdigit() and len(key) <= 4 and int(key) <= MAX_LAYER):
            raise InvalidRequest(f"{param}: not a layer's number", code="invalid_vector", param=param)
        if int(key) in directions:
            raise InvalidRequest(f"{param}: the layer is there twice", code="invalid_vector", param=param)
        directions[int(key)] = _direction_of(numbers, param)
    return directions


def _direction_of(numbers: Any, param: str) -> Tensor:
    if isinstance(numbers, list) and all(type(number) in (int, float) for number in numbers):
        try:
            with np.errstate(over="ignore"):  # an overflow becomes infinity, which is refused by name
                values = np.array(numbers, dtype=np.float64).astype(np.float32)
        except OverflowError:
            raise InvalidRequest(f"{param}: a number is too large", code="invalid_vector", param=param) from None
        return torch.from_numpy(values)
    if isinstance(numbers, str):
        try:
            data = base64.b64decode(numbers, validate=True)
            return torch.from_numpy(np.frombuffer(data, dtype="<f4").astype(np.float32))
        except (binascii.Error, ValueError):
            raise InvalidRequest(
                f"{param}: not base64 of little-endian float32 numbers", code="invalid_vector", param=param
            ) from None
    raise InvalidRequest(
        f"{param}: give a list of numbers, or base64 of little-endian float32", code="invalid_vector", param=param
    )
