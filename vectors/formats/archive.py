"""The zip archives of `torch.save`, read without running any of their code.

The pickle is interpreted here, by a short table of operations over tensors, text, numbers, lists, tuples and dicts: no
name in it is imported and nothing in it is called. Dict keys are text, whose hashes are unpredictable, or whole numbers
small enough not to collide. (`torch.load(weights_only=True)` is safe from code, but nested tuples as dict keys can hang
it or overflow its stack.) Operations are counted, and each costs no more than what it takes off the stack. Tensors are
views into the archive's members, and NumPy's arrays, whose content stands in the pickle itself, are together no larger
than the pickle.
"""

from __future__ import annotations

import pickletools
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from vectors.errors import InvalidVector
from vectors.formats.arrays import tensor_of
from vectors.formats.zips import ZipMembers

_MAX_PICKLE_BYTES = 32 << 20
_MAX_PICKLE_OPERATIONS = 500_000
_MAX_ENTRIES = 10_000
_MAX_NUMBER_AS_KEY = 9_999
_MAX_DIMENSIONS = 8
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
_RECONSTRUCT = ("numpy._core.multiarray _reconstruct", "numpy.core.multiarray _reconstruct")
_SCALAR = ("numpy._core.multiarray scalar", "numpy.core.multiarray scalar")
_ARRAY, _DTYPE, _ENCODE = "numpy ndarray", "numpy dtype", "_codecs encode"
_KNOWN = frozenset({_DICT, _TENSOR, _PARAMETER, *_RECONSTRUCT, *_SCALAR, _ARRAY, _DTYPE, _ENCODE, *_STORAGES})
_LITERALS = frozenset(
    {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "SHORT_BINSTRING"}
)
_CONSTANTS: Mapping[str, Any] = MappingProxyType({"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()})
_TUPLES: Mapping[str, int] = MappingProxyType({"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3})


def read_archive(data: bytes, most: int | None = None) -> Any:
    """What `torch.save` was given: a tensor, or plain containers of them; an array of NumPy is a tensor too.

    `most` is as for `ZipMembers`. Raises `InvalidVector`.
    """
    members = ZipMembers(data, most)
    try:
        pickled, records = _inspect_members(members)
        return _Machine(members, records).run(members.read(pickled))
    except InvalidVector:
        raise
    except Exception as error:  # pickletools and torch raise many kinds for a damaged archive
        raise InvalidVector(f"the .pt archive is damaged: {type(error).__name__}") from None


def _inspect_members(members: ZipMembers) -> tuple[str, dict[str, str]]:
    """The names of the pickle and of the tensors' members by key."""
    names = members.names
    pickles = [name for name in names if name.split("/")[-1] == "data.pkl"]
    if len(pickles) != 1 or pickles[0].count("/") != 1:
        raise InvalidVector("expected an archive written by torch.save, got one without data.pkl")
    if any(name.endswith((".pkl", ".py")) for name in names if name != pickles[0]):
        raise InvalidVector("the archive contains code or a second pickle")
    if members.size(pickles[0]) > _MAX_PICKLE_BYTES:
        raise InvalidVector(f"the archive's pickle is larger than {_MAX_PICKLE_BYTES >> 20} MiB")
    root = pickles[0].removesuffix("data.pkl")
    if f"{root}byteorder" in names and members.read(f"{root}byteorder") != b"little":
        raise InvalidVector("the archive was not written in little-endian byte order")
    folder = f"{root}data/"
    return pickles[0], {name.removeprefix(folder): name for name in names if name.startswith(folder)}


@dataclass(frozen=True, slots=True)
class _Name:
    """A module and a name that the pickle refers to: one of a few known ones, never imported."""

    text: str


@dataclass(frozen=True, slots=True)
class _Storage:
    values: Tensor


@dataclass(frozen=True, slots=True)
class _Bytes:
    """Bytes as protocol 2 writes them: text of the characters 0 to 255. Decoded where they are used, once."""

    text: str


@dataclass(slots=True)
class _Dtype:
    """A dtype of NumPy. Its byte order comes after it was put on the stack."""

    code: str
    order: str = "|"


class _Machine:
    """The stack machine of a pickle, without its ability to run code."""

    def __init__(self, archive: ZipMembers, records: Mapping[str, str]) -> None:
        self._archive = archive
        self._records = records
        self._raw: dict[str, Tensor] = {}
        self._stack: list[Any] = []
        self._marks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        self._unfilled: dict[int, Tensor] = {}
        """Arrays, by identity, whose content is still to come."""
        self._most_bytes = 0

    def run(self, data: bytes) -> Any:
        self._most_bytes = len(data)
        for number, (operation, argument, _) in enumerate(pickletools.genops(data)):
            if number > _MAX_PICKLE_OPERATIONS:
                raise InvalidVector(f"the archive's pickle has more than {_MAX_PICKLE_OPERATIONS} operations")
            if operation.name == "STOP":
                if len(self._stack) != 1 or self._marks or self._unfilled:
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
            stack.append(self._reduce(_expect(_Name, callee).text, _expect(tuple, arguments)))
        elif operation == "BUILD":
            (state,) = self._pop(1)
            self._build(stack[-1], state)
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

    def _reduce(self, name: str, arguments: tuple[Any, ...]) -> Any:
        if name == _DICT and not arguments:
            return {}
        if name == _PARAMETER:
            return _expect(Tensor, arguments[0])
        if name == _TENSOR:
            return _tensor_of_storage(*arguments[:8])
        if name == _ENCODE:
            text, _encoding = arguments
            return _Bytes(_expect(str, text))
        if name == _DTYPE:
            return _Dtype(_expect(str, arguments[0])[:40])
        if name in _RECONSTRUCT and _expect(_Name, arguments[0]).text == _ARRAY:
            array = torch.empty(0)
            self._unfilled[id(array)] = array
            return array
        if name in _SCALAR:
            dtype, content = arguments
            return self._array((), dtype, False, content).item()
        raise InvalidVector("the pickle calls a function; only tensors and plain containers are read")

    def _build(self, target: Any, state: Any) -> None:
        """Give what is on the stack its state: an array its content, a dtype its byte order.

        That of a dict is left out: attributes of an OrderedDict, such as a state dict's _metadata.
        """
        if id(target) in self._unfilled:
            _version, shape, dtype, is_fortran, content = _expect(tuple, state)
            target.data = self._array(_expect(tuple, shape), dtype, is_fortran is True, content)
            del self._unfilled[id(target)]
        elif isinstance(target, _Dtype):
            target.order = _expect(str, _expect(tuple, state)[1])[:1]
        else:
            _expect(dict, target)

    def _array(self, shape: tuple[Any, ...], dtype: object, is_fortran: bool, content: object) -> Tensor:
        if not isinstance(dtype, _Dtype):
            raise InvalidVector("the archive's pickle is damaged: an array without a dtype")
        if dtype.code.startswith("O"):
            raise InvalidVector("the pickle has an array of objects; only arrays of numbers are read")
        text = _expect(_Bytes, content).text
        self._most_bytes -= len(text)
        if self._most_bytes < 0:  # otherwise one text could be the content of any number of arrays
            raise InvalidVector("the pickle's arrays are together larger than the pickle")
        return tensor_of(
            dtype.code, dtype.order, [_expect(int, size) for size in shape], is_fortran, text.encode("latin-1")
        )


def _name(argument: str) -> _Name:
    if argument not in _KNOWN:
        named = argument[:100].replace(" ", ".")
        raise InvalidVector(f"the pickle refers to {named!r}; only tensors and plain containers are read")
    return _Name(argument)


def _tensor_of_storage(
    storage: object,
    offset: Any,
    size: object,
    stride: object,
    _requires_grad: object,
    _hooks: object,
    *metadata: object,
) -> Tensor:
    if len(metadata) > 1 or any(metadata):
        raise InvalidVector("the pickle contains a conjugated or negated view; save a clone of it")
    sizes: tuple[int, ...] = _expect(tuple, size)
    if len(sizes) > _MAX_DIMENSIONS:
        raise InvalidVector(f"the pickle contains a tensor of {len(sizes)} dimensions")
    values: Tensor = _expect(_Storage, storage).values
    return values.as_strided(sizes, _expect(tuple, stride), offset)


def _expect(kind: type[Any], value: Any) -> Any:
    if not isinstance(value, kind):
        raise InvalidVector(f"the archive's pickle is damaged: an unexpected {type(value).__name__}")
    return value
