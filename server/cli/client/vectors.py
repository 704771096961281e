"""`tiller vectors`: the registry of a running server from the terminal.

Files are sent unchanged, a folder as a zip of its files; the server checks them. Of a sparse autoencoder one row is
read here and sent.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from server.cli.client.connection import connect, readable_failures
from server.cli.errors import USAGE, CommandFailed
from vectors.client.clients import DamagedVector, RegisteredVector, VectorClient
from vectors.defaults import DEFAULTS
from vectors.formats.autoencoder import read_feature


def vectors(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Run one action on the registry; returns the exit code."""
    actions = {"list": _list, "show": _show, "put": _put, "get": _get, "rollback": _roll_back, "rm": _remove}
    with connect(VectorClient, arguments, environ) as client, readable_failures():
        actions[arguments.action](client, arguments)
    return 0


def show_vectors(found: Sequence[RegisteredVector | DamagedVector], console: Console) -> None:
    """A table of vectors."""
    if not found:
        console.print("no vectors; add one with: tiller vectors put NAME FILE")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("name", "revision", "layers", "scale", "operation", "positions", "description"):
        table.add_column(heading, overflow="fold" if heading in ("name", "description") else "ellipsis")
    for vector in found:
        if isinstance(vector, DamagedVector):
            revision = (vector.revision or "?")[:12]
            table.add_row(*(Text(cell) for cell in (vector.name, revision, "", "", "", "", f"DAMAGED: {vector.error}")))
            continue
        cells = (
            vector.name,
            vector.revision[:12],
            ranges(vector.layers),
            f"{vector.default_scale:g}",
            vector.operation,
            _positions(vector),
            vector.description,
        )
        table.add_row(*(Text(cell) for cell in cells))
    console.print(table)


def ranges(layers: Sequence[int]) -> str:
    """`[3, 4, 5, 9]` -> `3-5,9`."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][1] + 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def _interval(vector: RegisteredVector) -> str:
    """The interval of `cap`, as in ` from 0 to 0.5`; empty without one."""
    ends = (("from", vector.min), ("to", vector.max))
    return "".join(f" {word} {bound:g}" for word, bound in ends if bound is not None)


def _positions(vector: RegisteredVector) -> str:
    """A name, or a window as JSON."""
    return vector.positions if isinstance(vector.positions, str) else json.dumps(dict(vector.positions))


def _list(client: VectorClient, arguments: argparse.Namespace) -> None:
    if arguments.json:
        for vector in client.list():
            print(_json(vector))
    else:
        show_vectors(list(client.list()), Console(highlight=False))


def _show(client: VectorClient, arguments: argparse.Namespace) -> None:
    vector = client.get(arguments.name)
    if arguments.json:
        print(_json(vector))
        return
    about = Table(box=None, pad_edge=False, show_header=False)
    for name, value in (
        ("name", vector.name),
        ("revision", vector.revision),
        ("created", _date(vector.created_at)),
        ("model", vector.model or "not given"),
        ("site", vector.site),
        ("layers", ranges(vector.layers)),
        ("scale", f"{vector.default_scale:g}"),
        ("operation", vector.operation + _interval(vector)),
        ("positions", _positions(vector)),
        ("parts", ", ".join(vector.parts)),
        ("description", vector.description),
    ):
        about.add_row(name, Text(value, overflow="fold"))
    history = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("history", "created", "bytes"):
        history.add_column(heading, justify="right" if heading == "bytes" else "left")
    for entry in vector.history or ():
        is_current = " (current)" if entry.revision == vector.revision else ""
        history.add_row(Text(f"{entry.revision[:12]}{is_current}"), _date(entry.created_at), str(entry.bytes))
    console = Console(highlight=False)
    console.print(about)
    console.print()
    console.print(history)


def _put(client: VectorClient, arguments: argparse.Namespace) -> None:
    facts: dict[str, Any] = {}
    for name in ("layer", "layers", "row", "convention", *(row.name for row in DEFAULTS if row.flag)):
        value = getattr(arguments, name)
        if value is not None:
            facts[name] = value
    if not arguments.sae and (arguments.feature is not None or arguments.unit_norm):
        raise CommandFailed("--feature and --unit-norm are for --sae", USAGE)
    path = Path(arguments.file)
    try:
        vector = client.put(arguments.name, _feature(arguments, facts) if arguments.sae else path, **facts)
    except OSError as error:
        raise CommandFailed(f"{error.filename or path} cannot be read: {error.strerror}") from None
    print(_line(vector))


def _feature(arguments: argparse.Namespace, facts: dict[str, Any]) -> bytes:
    """The file of one feature of `--sae`. Takes `layer` out of `facts`; says what was understood."""
    if arguments.feature is None:
        raise CommandFailed("--sae needs --feature, the number of the feature", USAGE)
    unfit = [name for name in ("layers", "row", "convention") if name in facts]
    if unfit:
        raise CommandFailed(f"--{unfit[0]} is for a file: a feature of --sae is one direction", USAGE)
    found = read_feature(
        Path(arguments.file), arguments.feature, layer=facts.pop("layer", None), unit_norm=arguments.unit_norm
    )
    print(found.summary)
    return found.content


def _get(client: VectorClient, arguments: argparse.Namespace) -> None:
    target = Path(arguments.output or f"{arguments.name}.{arguments.format}")
    if arguments.output is None and target.exists():
        raise CommandFailed(f"{target} already exists; use -o to overwrite it")
    content = client.content(arguments.name, arguments.format)
    if arguments.output == "-":
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
        return
    try:
        target.write_bytes(content)
    except OSError as error:
        raise CommandFailed(f"{target} cannot be written: {error.strerror}") from None
    print(f"{target}: {len(content)} bytes")


def _roll_back(client: VectorClient, arguments: argparse.Namespace) -> None:
    print(_line(client.rollback(arguments.name, arguments.revision)))


def _remove(client: VectorClient, arguments: argparse.Namespace) -> None:
    client.delete(arguments.name)
    print(f"{arguments.name}: removed")


def _line(vector: RegisteredVector) -> str:
    layers = ranges(vector.layers)
    return f"{vector.name}@{vector.revision[:12]}: {vector.site} at layers {layers}, {vector.bytes} bytes"


def _json(vector: RegisteredVector | DamagedVector) -> str:
    fields = asdict(vector)
    if isinstance(vector, RegisteredVector) and vector.history is None:
        del fields["history"]
    return json.dumps(fields)


def _date(unix_seconds: int) -> str:
    return f"{datetime.fromtimestamp(unix_seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"
