"""OpenAI's Files API under `/v1/files`: upload, list, get, download, delete.

Uploads are written to disk as they arrive, and everything that waits for a disk does so off the event loop.
"""

from __future__ import annotations

from typing import Annotated

from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, Request
from pydantic import WithJsonSchema
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, UploadFile
from starlette.responses import FileResponse, Response
from typing_extensions import TypedDict

from server.api.http.auth import require
from server.api.http.bodies import refuse_unknown_query
from server.api.http.description import BYTES, FORM, Parameter, Success, describe
from server.api.http.json_response import json_response
from server.api.http.pages import after_of, limit_of, order_of, page_of
from server.api.http.parameters import DISPOSITION, after, identifier, limit, order
from server.api.http.services import services_of
from server.api.http.uploads import multipart_form
from server.api.training.objects import DeletedFile, File, FileList
from server.api.training.wire import file_object
from server.errors import Conflict, InsufficientStorage, InvalidRequest, NotFound, Unavailable
from server.jobs.records import TRAINING_PURPOSE
from server.keys import Role

router = APIRouter(prefix="/v1/files", dependencies=[Depends(require(Role.MANAGE))], tags=["Files"])

_MOST_LISTED = 10_000
_MAX_FIELDS = 4
_MAX_FIELD_BYTES = 4096
_PURPOSES = (
    "assistants", "assistants_output", "batch", "batch_output", "evals", "fine-tune", "fine-tune-results", "user_data",
    "vision",
)  # fmt: skip


class FileForm(TypedDict):
    """The parts of an upload: the file, with a name, and its purpose."""

    file: Annotated[bytes, WithJsonSchema({"type": "string", "format": "binary", "minLength": 1})]
    purpose: Annotated[str, WithJsonSchema({"const": TRAINING_PURPOSE})]


_FILE_ID = identifier("file")
_ONE_ERRORS = (InvalidRequest, NotFound, Unavailable)


@router.post("")
@describe(Success(File, "The stored file."), bodies={FORM: FileForm}, errors=(Unavailable, InsufficientStorage))
async def upload_file(request: Request) -> Response:
    """Upload a file."""
    services = services_of(request)
    files = services.training().files
    refuse_unknown_query(request)
    kind, _ = parse_options_header(request.headers.get("content-type"))
    if kind != b"multipart/form-data":
        raise InvalidRequest("Content-Type: expected multipart/form-data", code="invalid_header", param="Content-Type")
    limit = services.max_upload_bytes
    async with multipart_form(request, limit, max_fields=_MAX_FIELDS, max_field_bytes=_MAX_FIELD_BYTES) as form:
        upload, purpose = _parts_of(form)
        name = upload.filename or ""
        return json_response(file_object(await run_sync(files.put_stream, name, purpose, upload.file)))


@router.get("")
@describe(
    Success(FileList, "A page of files, newest first unless ordered otherwise."),
    errors=(Unavailable,),
    parameters=(
        limit(_MOST_LISTED, _MOST_LISTED),
        after("file"),
        order("desc"),
        Parameter("purpose", "List only files with this purpose.", {"type": "string", "enum": list(_PURPOSES)}),
    ),
)
async def list_files(request: Request) -> Response:
    """List the files."""
    files = services_of(request).training().files
    refuse_unknown_query(request, "limit", "after", "order", "purpose")
    limit = limit_of(request, default=_MOST_LISTED, most=_MOST_LISTED)
    after, order = after_of(request, "file"), order_of(request, "desc")
    purpose = request.query_params.get("purpose")
    if purpose is not None and purpose not in _PURPOSES:
        raise InvalidRequest(
            f"purpose: expected one of {', '.join(_PURPOSES)}, got {purpose[:60]!r}",
            code="invalid_value",
            param="purpose",
        )

    def page() -> Response:
        found = files.list(after=after, limit=limit + 1, order=order, purpose=purpose)
        return json_response(page_of([file_object(record) for record in found], limit))

    return await run_sync(page)


@router.get("/{identifier}")
@describe(Success(File, "The file's metadata."), errors=_ONE_ERRORS, parameters=(_FILE_ID,))
async def get_file(request: Request, identifier: str) -> Response:
    """Get the metadata of a file."""
    files = services_of(request).training().files
    refuse_unknown_query(request)
    return json_response(file_object(await run_sync(files.get, identifier)))


@router.get("/{identifier}/content")
@describe(
    Success(None, "The content of the file.", media_type=BYTES, headers=(DISPOSITION,)),
    errors=_ONE_ERRORS,
    parameters=(_FILE_ID,),
)
async def get_file_content(request: Request, identifier: str) -> Response:
    """Download the content of a file."""
    files = services_of(request).training().files
    refuse_unknown_query(request)
    record = await run_sync(files.get, identifier)
    path = await run_sync(files.path, identifier)
    return FileResponse(path, media_type="application/octet-stream", filename=record.filename)


@router.delete("/{identifier}")
@describe(
    Success(DeletedFile, "The file is deleted."),
    errors=(*_ONE_ERRORS, Conflict, InsufficientStorage),
    parameters=(_FILE_ID,),
)
async def delete_file(request: Request, identifier: str) -> Response:
    """Delete a file.

    A file that an unfinished job needs cannot be deleted.
    """
    files = services_of(request).training().files
    refuse_unknown_query(request)
    await run_sync(files.delete, identifier)
    return json_response(DeletedFile(id=identifier, object="file", deleted=True))


def _parts_of(form: FormData) -> tuple[UploadFile, str]:
    """The file and its purpose. Raises `InvalidRequest` for any other part."""
    names = [name for name, _ in form.multi_items()]
    for name in names:
        if name.partition("[")[0] == "expires_after":
            raise InvalidRequest(
                "expires_after: not supported by this server; files are stored until they are deleted",
                code="unsupported_parameter",
                param="expires_after",
            )
        if name not in ("file", "purpose"):
            raise InvalidRequest(
                f"{name[:60]}: expected one of the parts file, purpose", code="unknown_parameter", param=name[:60]
            )
        if names.count(name) > 1:
            raise InvalidRequest(f"{name}: given more than once", code="invalid_value", param=name)
    upload, purpose = form.get("file"), form.get("purpose")
    if not isinstance(purpose, str):
        raise InvalidRequest("purpose: missing required part", code="missing_required_parameter", param="purpose")
    if purpose != TRAINING_PURPOSE:
        is_known = purpose in _PURPOSES
        more = ", which this server does not support" if is_known else ""
        raise InvalidRequest(
            f"purpose: expected {TRAINING_PURPOSE}, got {purpose[:60]!r}{more}",
            code="unsupported_parameter" if is_known else "invalid_value",
            param="purpose",
        )
    if not isinstance(upload, UploadFile):
        raise InvalidRequest("file: missing required part", code="missing_required_parameter", param="file")
    if upload.size == 0:
        raise InvalidRequest("file: expected content, got an empty file", code="invalid_value", param="file")
    return upload, purpose
