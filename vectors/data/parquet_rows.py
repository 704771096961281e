"""The records of a Parquet file, unpacked in a child process: a small file may say much, or crash its reader.

Of a user's file, only columns that may have a role are unpacked.
"""

from __future__ import annotations

import atexit
import functools
import importlib.util
import json
import os
import struct
from collections.abc import Collection, Iterator
from typing import Any

from vectors.confined import Child, Limits, Task, TaskFailed
from vectors.data.json_rows import json_row
from vectors.data.row import MAX_TEXT_BYTES, Row
from vectors.data.shapes import may_have_role
from vectors.errors import InvalidData, MissingDependency

MAX_UNPACKED_BYTES = 1 << 30
"""The memory that all rows may take; the file itself may be far smaller."""

LIMITS = Limits(memory_mib=1024, seconds=300.0)
"""What unpacking one file may take."""

_MOST_FREE = 1
_MAGIC = b"PAR1"
_BATCH_ROWS = 256
_KIND = "\0kind"
_HEAD = struct.Struct("<I")


def is_parquet(content: bytes) -> bool:
    """True when the bytes begin like a Parquet file."""
    return content.startswith(_MAGIC)


def parquet_rows(content: bytes, file: str, given: Collection[str] | None = None) -> Iterator[Row]:
    """The records of a file, with the columns that may have a role and those that the user has `given` one.

    None: with all columns. Raises `InvalidData`, and `MissingDependency` without pyarrow.
    """
    if importlib.util.find_spec("pyarrow") is None:
        raise MissingDependency("Parquet files need pyarrow: pip install 'tiller[train]'")
    if not content.endswith(_MAGIC):
        raise InvalidData("the Parquet file is damaged or cut: it does not end like one", file)
    options = json.dumps([None if given is None else sorted(given), MAX_UNPACKED_BYTES]).encode()
    free = _free_children(LIMITS)
    child = free.pop() if free else Child(__name__, LIMITS)
    line = 0
    refusal = None
    try:
        for piece in child.run(_HEAD.pack(len(options)) + options + content):
            found = json.loads(piece, object_hook=_of_json)
            if isinstance(found, str):  # the last piece: once it is taken to its end, the process can do the next file
                refusal = InvalidData(found, file, line + 1 if line else None)
                continue
            for record in found:
                line += 1
                yield json_row(record, file, line, "parquet")
    except TaskFailed as error:
        raise InvalidData(f"the Parquet file cannot be read: {error}", file) from None
    finally:  # also when nobody wants the rest of the rows
        free.append(child)
        while len(free) > _MOST_FREE:
            free.pop(0).close()
    if refusal is not None:
        raise refusal


@functools.cache
def _free_children(limits: Limits) -> list[Child]:
    """Processes that can unpack the next file."""
    free: list[Child] = []

    def close() -> None:
        for child in free:
            child.close()

    atexit.register(close)
    return free


def prepare(setup: bytes) -> Task:
    """In the child: see `vectors.confined`."""
    os.putenv("ARROW_DEFAULT_MEMORY_POOL", "system")  # others reserve far more memory than they use
    import pyarrow.parquet

    assert pyarrow.default_memory_pool().backend_name == "system"
    return _unpacked


def _unpacked(payload: bytes) -> Iterator[bytes]:
    """Lists of records as JSON, or a text that says why there are no more."""
    (length,) = _HEAD.unpack_from(payload)
    start = _HEAD.size + length
    given, most = json.loads(payload[_HEAD.size : start])
    try:
        for records in _batches(memoryview(payload)[start:], given, most):
            yield json.dumps(records, default=_kind_of).encode()
    except InvalidData as error:
        yield json.dumps(str(error)).encode()
    except MemoryError:
        raise
    except Exception as error:  # the library raises many kinds for damaged bytes
        reason = " ".join(str(error).split())[:200]
        yield json.dumps(f"the Parquet file is damaged or cannot be read: {reason}").encode()


def _batches(content: memoryview, given: Collection[str] | None, most: int) -> Iterator[list[dict[str, Any]]]:
    import pyarrow
    import pyarrow.parquet

    source = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(pyarrow.py_buffer(content)), pre_buffer=False)
    columns = _columns(source.schema_arrow, given)
    unpacked = 0
    for batch in source.iter_batches(batch_size=_BATCH_ROWS, columns=columns, use_threads=False):
        coded = [column.dictionary.nbytes for column in batch.columns if pyarrow.types.is_dictionary(column.type)]
        unpacked += batch.nbytes
        # a dictionary stores a long text once, but every row unpacks its own copy
        if unpacked > most or max(coded, default=0) > MAX_TEXT_BYTES:
            raise InvalidData(f"the rows take more than {most >> 20} MiB unpacked", "")
        yield batch.to_pylist()


def _columns(schema: Any, given: Collection[str] | None) -> list[str]:
    """The columns to read; all of them for an error that lists them, if none has a role.

    Rejects what the schema shows to be ambiguous, or far larger unpacked than the file. Details of row groups and
    columns are not read: damaged ones crash the process.
    """
    names = schema.names
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidData(f"two columns are named {twice[:60]!r}", "")
    wanted: list[str] = names
    if given is not None:
        wanted = [name for name in names if name in given or may_have_role(name, names)] or names
    for name, kind in zip(names, schema.types, strict=True):
        if name in wanted and "dictionary<" in str(kind)[1:]:
            raise InvalidData(f"column {name[:60]!r}: a dictionary inside a list or struct is not supported", "")
    return wanted


def _kind_of(value: object) -> dict[str, str]:
    """What stands for a value that JSON does not have."""
    return {_KIND: type(value).__name__}


def _of_json(found: dict[str, Any]) -> object:
    return type(found[_KIND], (), {})() if found.keys() == {_KIND} else found
