"""An HTTP server that is not ours: it gives everyone the same answer, and remembers what it was asked."""

from __future__ import annotations

import contextlib
import http.server
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

NONSENSE = (b"", b"<html>", b"\xff\xfe", b"null", b"[]", b"{}", b"[" * 200_000)
"""What no tiller server answers."""


@dataclass
class Stranger:
    """Where it listens, the request lines that came, and headers that its answers have besides the usual ones."""

    url: str
    asked: list[str] = field(default_factory=list)
    headers: Mapping[str, str] = field(default_factory=dict)


@contextlib.contextmanager
def stranger(
    body: bytes,
    *,
    status: int = 200,
    content_type: str = "text/html",
    is_echo: bool = False,
) -> Iterator[Stranger]:
    """Answer everything with `body`; `is_echo` puts what the request's Authorization says in place of `KEY`."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self) -> None:
            found.asked.append(self.requestline)
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            said = body.replace(b"KEY", self.headers.get("Authorization", "").encode()) if is_echo else body
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(said)))
            for name, value in found.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(said)

        do_GET = do_PUT = do_POST = do_PATCH = do_DELETE = answer

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        found = Stranger(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield found
        finally:
            server.shutdown()
            thread.join()
