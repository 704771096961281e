"""The zip archives of `torch.save`, read without running any of their code.

The pickle is interpreted here, by a short table of operations over tensors, text, numbers, lists, tuples and dicts: no
name in it is imported and nothing in it is called. Dict keys are text, whose hashes are unpredictable, or whole numbers
small enough not to collide. (`torch.load(weights_only=True)` is safe from code, but nested tuples as dict keys can hang
it or overflow its stack.) Operations are counted, and each costs no more than what it takes off the stack. Tensors are
views into the archive's members, so nothing is allocated beyond the file's own size.
"""

from __future__ import annotations

import io
import pickletools
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from vectors.errors import InvalidVector

_MAX_MEMBERS = 10_000
_MAX_PICKLE_BYTES = 4 << 20
_MAX_PICKLE_OPERATIONS = 500_000
_MAX_ENTRIES = 10_000
_MAX_NUMBER_AS_KEY = 9_999
_MAX_DIMENSIONS = 8
_MEMBER_SIGNATURE = b"PK\x01\x02"
_STORAGES: Mapping[str, torch.dtype] = MappingProxyType(
    {
        "torch FloatStorage": torch.float32,
        "torch HalfStorage": torch.float16,
        "torch BFloat16Storage": torch.bfloat16,
        "torch DoubleStorage": torch.float64,
        "torch LongStorage": torch.int64,
        "torch IntStorage": torch.int32,
        "torch ShortStorage": torch.int16,
        "torch CharStorage": torch.int8,
        "torch ByteStorage": torch.uint8,
        "torch BoolStorage": torch.bool,
    }
)
_DICT, _TENSOR, _PARAMETER = (
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
)
_LITERALS = frozenset(
    {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "SHORT_BINSTRING"}
)
_CONSTANTS: Mapping[str, Any] = MappingProxyType({"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()})
_TUPLES: Mapping[str, int] = MappingProxyType({"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3})


def read_archive(data: bytes) -> Any:
    """What `torch.save` was given: a tensor, or plain containers of them. Raises `InvalidVector`."""
    if data.count(_MEMBER_SIGNATURE) > _MAX_MEMBERS:  # one per member, and ZipFile creates an object for each
        raise InvalidVector(f"the archive has more than {_MAX_MEMBERS} members")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            pickled, records = _inspect_members(archive, len(data))
            return _Machine(archive, records).run(archive.read(pickled))
    except InvalidVector:
        raise
    except Exception as error:  # zipfile, pickletools and torch raise many kinds for a damaged archive
        raise InvalidVector(f"the .pt archive is damaged: {type(error).__name__}") from None


def _inspect_members(archive: zipfile.ZipFile, num_bytes: int) -> tuple[zipfile.ZipInfo, dict[str, zipfile.ZipInfo]]:
    """The pickle and the tensors' members by key, after checking that members fit in the file."""
    members = archive.infolist()
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise InvalidVector("the archive is compressed, which torch.save never does")
    if sum(member.file_size for member in members) > num_bytes:
        raise InvalidVector("the archive declares more bytes than it has")
    by_name = {member.filename: member for member in members}
    if len(by_name) != len(members):
        raise InvalidVector("the archive has two members of the same name")
    pickles = [name for name in by_name if name.split("/")[-1] == "data.pkl"]
    if len(pickles) != 1 or pickles[0].count("/") != 1:
        raise InvalidVector("expected an archive written by torch.save, got one without data.pkl")
    if any(name.endswith((".pkl", ".py")) for name in by_name if name != pickles[0]):
        raise InvalidVector("the archive contains code or a second pickle")
    pickled = by_name[pickles[0]]
    if pickled.file_size > _MAX_PICKLE_BYTES:
        raise InvalidVector(f"the archive's pickle is larger than {_MAX_PICKLE_BYTES >> 20} MiB")
    root = pickles[0].removesuffix("data.pkl")
    order = by_name.get(f"{root}byteorder")
    if order is not None and archive.read(order) != b"little":
        raise InvalidVector("the archive was not written in little-endian byte order")
    folder = f"{root}data/"
    return pickled, {name.removeprefix(folder): by_name[name] for name in by_name if name.startswith(folder)}


@dataclass(frozen=True, slots=True)
class _Name:
    """A module and a name that the pickle refers to: one of a few known ones, never imported."""

    text: str


@dataclass(frozen=True, slots=True)
class _Storage:
    values: Tensor


class _Machine:
    """The stack machine of a pickle, without its ability to run code."""

    def __init__(self, archive: zipfile.ZipFile, records: Mapping[str, zipfile.ZipInfo]) -> None:
        self._archive = archive
        self._records = records
        self._raw: dict[str, Tensor] = {}
        self._stack: list[Any] = []
        self._marks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def run(self, data: bytes) -> Any:
        for number, (operation, argument, _) in enumerate(pickletools.genops(data)):
            if number > _MAX_PICKLE_OPERATIONS:
                raise InvalidVector(f"the archive's pickle has more than {_MAX_PICKLE_OPERATIONS} operations")
            if operation.name == "STOP":
                if len(self._stack) != 1 or self._marks:
                    break
                return self._stack[0]
            self._step(operation.name, argument)
        raise InvalidVector("the archive's pickle is damaged: it does not end with one value")

    def _step(self, operation: str, argument: Any) -> None:
        stack = self._stack
        if operation in _LITERALS:
            stack.append(argument)
        elif operation in _CONSTANTS:
            stack.append(_CONSTANTS[operation])
        elif operation == "EMPTY_DICT":
            stack.append({})
        elif operation == "EMPTY_LIST":
            stack.append([])
        elif operation in ("BINPUT", "LONG_BINPUT"):
            self._memo[argument] = stack[-1]
        elif operation in ("BINGET", "LONG_BINGET"):
            stack.append(self._memo[argument])
        elif operation == "MARK":
            self._marks.append(stack)
            self._stack = []
        elif operation == "TUPLE":
            self._push(tuple(self._pop_to_mark()))
        elif operation in _TUPLES:
            stack.append(tuple(self._pop(_TUPLES[operation])))
        elif operation in ("APPEND", "APPENDS"):
            values = self._pop(1) if operation == "APPEND" else self._pop_to_mark()
            _expect(list, self._stack[-1]).extend(values)
        elif operation in ("SETITEM", "SETITEMS"):
            self._set_items(self._pop(2) if operation == "SETITEM" else self._pop_to_mark())
        elif operation == "GLOBAL":
            stack.append(_name(argument))
        elif operation == "REDUCE":
            callee, arguments = self._pop(2)
            stack.append(_reduce(_expect(_Name, callee).text, _expect(tuple, arguments)))
        elif operation == "BUILD":  # attributes of an OrderedDict, such as a state dict's _metadata
            self._pop(1)
            _expect(dict, stack[-1])
        elif operation == "BINPERSID":
            stack.append(self._storage(*_expect(tuple, stack.pop())))
        elif operation != "PROTO":
            raise InvalidVector(f"the pickle builds objects ({operation}); only tensors and plain containers are read")

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _pop(self, count: int) -> list[Any]:
        values = self._stack[-count:]
        if len(values) != count:
            raise InvalidVector("the archive's pickle is damaged: it pops more values than it has pushed")
        del self._stack[-count:]
        return values

    def _pop_to_mark(self) -> list[Any]:
        values = self._stack
        self._stack = self._marks.pop()
        return values

    def _set_items(self, items: list[Any]) -> None:
        target = _expect(dict, self._stack[-1])
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) not in (str, int):
                raise InvalidVector(f"the pickle has a {type(key).__name__} as a dict key; expected layers")
            if type(key) is int and not 0 <= key <= _MAX_NUMBER_AS_KEY:
                raise InvalidVector(f"the pickle has a dict key outside 0 to {_MAX_NUMBER_AS_KEY}; expected layers")
            target[key] = value
            if len(target) > _MAX_ENTRIES:
                raise InvalidVector(f"the pickle has a dict of more than {_MAX_ENTRIES} entries")

    def _storage(self, kind: object, name: object, key: object, _location: object, length: object) -> _Storage:
        """A persistent id: `("storage", the storage's class, the member's key, the device, its length)`."""
        dtype = _STORAGES.get(_expect(_Name, name).text)
        if kind != "storage" or dtype is None or not isinstance(key, str) or key not in self._records:
            raise InvalidVector("the pickle refers to a tensor that is not in the archive")
        if key not in self._raw:
            content = bytearray(self._archive.read(self._records[key]))
            self._raw[key] = torch.frombuffer(content, dtype=torch.uint8) if content else torch.empty(0).byte()
        raw = self._raw[key]
        if length != raw.numel() / dtype.itemsize:
            raise InvalidVector(f"tensor data {key[:40]!r} does not have the declared length; is the file truncated?")
        return _Storage(raw.view(dtype))


def _name(argument: str) -> _Name:
    if argument not in (_DICT, _TENSOR, _PARAMETER) and argument not in _STORAGES:
        named = argument[:100].replace(" ", ".")
        raise InvalidVector(f"the pickle refers to {named!r}; only tensors and plain containers are read")
    return _Name(argument)


def _reduce(name: str, arguments: tuple[Any, ...]) -> Any:
    if name == _DICT and not arguments:
        return {}
    if name == _PARAMETER:
        return _expect(Tensor, arguments[0])
    if name == _TENSOR:
        storage, offset, size, stride, _requires_grad, _hooks, *metadata = arguments[:8]
        if len(metadata) > 1 or any(metadata):
            raise InvalidVector("the pickle contains a conjugated or negated view; save a clone of it")
        if len(_expect(tuple, size)) > _MAX_DIMENSIONS:
            raise InvalidVector(f"the pickle contains a tensor of {len(size)} dimensions")
        return _expect(_Storage, storage).values.as_strided(size, _expect(tuple, stride), offset)
    raise InvalidVector("the pickle calls a function; only tensors and plain containers are read")


def _expect(kind: type[Any], value: Any) -> Any:
    if not isinstance(value, kind):
        raise InvalidVector(f"the archive's pickle is damaged: an unexpected {type(value).__name__}")
    return value
