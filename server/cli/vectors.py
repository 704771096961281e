"""`tiller vectors`: the registry of a running server from the terminal.

It passes files through as they are; what they hold is the server's to judge.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from rich.console import Console
from rich.table import Table
from rich.text import Text

from server.cli.client import ServerClient, expect, not_understood
from server.cli.errors import CommandFailed

_ROOT = "/v1/steering/vectors"
_PAGE = 100
_VECTOR = {
    "name": str,
    "revision": str,
    "site": str,
    "layers": [int],
    "bytes": int,
    "default_scale": int | float,
    "operation": str,
    "positions": str,
    "description": str | None,
}


def vectors(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Run one action on the registry; returns the exit code."""
    actions = {"list": _list, "put": _put, "get": _get, "rm": _remove}
    with ServerClient.from_arguments(arguments, environ) as client:
        actions[arguments.action](client, arguments)
    return 0


def all_vectors(client: ServerClient) -> Iterator[dict[str, Any]]:
    """Every vector of the registry, by name."""
    query: dict[str, str | int] = {"limit": _PAGE, "order": "asc"}
    while True:
        page = client.read("GET", _ROOT, {"data": [_VECTOR], "has_more": bool}, params=query)
        yield from page["data"]
        if not page["has_more"]:
            return
        query["after"] = expect(page.get("last_id"), str)


def show_vectors(found: list[dict[str, Any]], console: Console) -> None:
    """A table of vector objects."""
    if not found:
        console.print("no vectors; add one with: tiller vectors put NAME FILE")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("name", "revision", "layers", "scale", "operation", "positions", "description"):
        table.add_column(heading, overflow="fold" if heading in ("name", "description") else "ellipsis")
    for vector in found:
        cells = (
            vector["name"],
            vector["revision"][:12],
            ranges(vector["layers"]),
            f"{vector['default_scale']:g}",
            vector["operation"],
            vector["positions"],
            vector.get("description") or "",
        )
        table.add_row(*(Text(cell) for cell in cells))
    console.print(table)


def ranges(layers: list[int]) -> str:
    """`[3, 4, 5, 9]` -> `3-5,9`."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][1] + 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def _list(client: ServerClient, arguments: argparse.Namespace) -> None:
    if arguments.json:
        for vector in all_vectors(client):
            print(json.dumps(vector))
    else:
        show_vectors(list(all_vectors(client)), Console(highlight=False))


def _put(client: ServerClient, arguments: argparse.Namespace) -> None:
    file = Path(arguments.file)
    try:
        content = file.read_bytes()
    except OSError as error:
        raise CommandFailed(f"{file} cannot be read: {error.strerror}") from None
    given = {
        "layer": arguments.layer,
        "convention": arguments.convention,
        "default_scale": arguments.scale,
        "positions": arguments.positions,
        "operation": arguments.operation,
        "description": arguments.description,
    }
    metadata = {name: value for name, value in given.items() if value is not None}
    request: dict[str, Any]
    if metadata:
        request = {"files": {"file": (file.name, content)}, "data": {"metadata": json.dumps(metadata)}}
    else:
        request = {"content": content, "headers": {"Content-Type": "application/octet-stream"}}
    vector = client.read("PUT", _path_of(arguments.name), _VECTOR, **request)
    layers = ranges(vector["layers"])
    print(f"{vector['name']}@{vector['revision'][:12]}: {vector['site']} at layers {layers}, {vector['bytes']} bytes")


def _get(client: ServerClient, arguments: argparse.Namespace) -> None:
    target = Path(arguments.output or f"{arguments.name}.{arguments.format}")
    if arguments.output is None and target.exists():
        raise CommandFailed(f"{target} exists; name a file with -o to overwrite it")
    path = f"{_path_of(arguments.name)}/content"
    response = client.call("GET", path, params={"format": arguments.format})
    if response.headers.get("Content-Type") != "application/octet-stream":
        raise not_understood()
    content = response.content
    if arguments.output == "-":
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
        return
    try:
        target.write_bytes(content)
    except OSError as error:
        raise CommandFailed(f"{target} cannot be written: {error.strerror}") from None
    print(f"{target}: {len(content)} bytes")


def _remove(client: ServerClient, arguments: argparse.Namespace) -> None:
    client.read("DELETE", _path_of(arguments.name), {"deleted": bool})
    print(f"{arguments.name}: removed")


def _path_of(name: str) -> str:
    return f"{_ROOT}/{quote(name, safe='')}"
