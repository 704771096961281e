"""`/`, the playground, and its modules and styles under `/page/`.

The files are those of `files/` beside this module, listed once when the application is built: no path comes from a
client. They need no key and tell nothing of what is served; what the page shows, it asks of the API with the key that
its user gives it. The policy lets it load and call this server only, and takes the means to make HTML of text.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from fastapi import APIRouter, Request
from starlette.responses import Response

from server.errors import NotFound

FILES = Path(__file__).with_name("files")
_INDEX = "index.html"
_MEDIA_TYPES = {".css": "text/css", ".html": "text/html", ".js": "text/javascript", ".svg": "image/svg+xml"}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' blob:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
_HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True, slots=True)
class _File:
    content: bytes
    media_type: str
    etag: str

    @classmethod
    def read(cls, path: Path) -> _File:
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()[:32]
        return cls(content, f"{_MEDIA_TYPES[path.suffix]}; charset=utf-8", f'"{digest}"')


def page_router() -> APIRouter:
    """The routes of the page. They are not part of the API, so its document does not list them."""
    router = APIRouter(include_in_schema=False)
    files = {path.name: _File.read(path) for path in sorted(FILES.iterdir()) if path.suffix in _MEDIA_TYPES}
    index = files.pop(_INDEX)

    @router.api_route("/", methods=["GET", "HEAD"])
    async def get_page(request: Request) -> Response:
        return _answer(request, index)

    @router.api_route("/page/{name}", methods=["GET", "HEAD"])
    async def get_file(request: Request, name: str) -> Response:
        found = files.get(name)
        if found is None:
            raise NotFound(f"the page has no file {name[:80]!r}", code="not_found")
        return _answer(request, found)

    return router


def _answer(request: Request, file: _File) -> Response:
    headers = {**_HEADERS, "ETag": file.etag}
    known = {tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")}
    if file.etag in known or "*" in known:
        return Response(status_code=304, headers=headers)
    return Response(file.content, media_type=file.media_type, headers=headers)
