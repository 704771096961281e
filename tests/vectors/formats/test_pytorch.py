"""`.pt` archives: what each layout means, and that nothing in them is run or believed."""

from __future__ import annotations

import io
import os
import pickle
import resource
import struct
import sys
import tracemalloc
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.vectors.formats.pickles import FOUR, TENSOR, archive, group, name, number, rebuilt, saved, storage, text
from vectors.errors import InvalidVector, VectorsError
from vectors.formats import ImportOptions, decode
from vectors.formats.archive import read_archive
from vectors.vector import SteeringVector

HIDDEN = 4
LAYERS = 3
FILES = Path(__file__).parents[3].parent / "shared" / "vectors"

needs_files = pytest.mark.skipif(
    not FILES.is_dir(), reason=f"the published vector files are not in {FILES.name}/ of shared/ beside the repository"
)


def ramp(factor: float = 1.0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (torch.arange(1, HIDDEN + 1) * factor).to(dtype)


def stack(rows: int) -> torch.Tensor:
    return torch.stack([ramp(row + 1) for row in range(rows)])


def read(data: bytes, **options: Any) -> SteeringVector:
    return decode(data, options=ImportOptions.from_json(options), num_layers=LAYERS, hidden_size=HIDDEN)


def first_values(vector: SteeringVector) -> dict[int, float]:
    return {layer: float(direction[0]) for layer, direction in vector.directions.items()}


# Layouts


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(HIDDEN,), (1, HIDDEN)])
def test_one_direction_takes_the_layer_of_the_upload(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    vector = read(saved(ramp(2, dtype).reshape(shape)), layer=2)
    assert vector.layers == (2,)
    assert vector.directions[2].dtype is dtype
    assert vector.directions[2].tolist() == [2, 4, 6, 8]
    assert vector.metadata["import"]["format"] == "pt"
    assert "layer that the upload gave" in vector.metadata["import"]["convention"]


def test_one_direction_without_a_layer_is_refused_saying_how_to_give_it() -> None:
    with pytest.raises(InvalidVector, match=r'upload it with metadata \{"layer": 12\}') as caught:
        read(saved(ramp()))
    assert caught.value.param == "layer"
    with pytest.raises(InvalidVector, match="expected layers from 0 to 4095, got -1"):
        read(saved(ramp()), layer=-1)


def test_a_row_a_block() -> None:
    vector = read(saved(stack(LAYERS)))
    assert first_values(vector) == {0: 1, 1: 2}
    assert vector.metadata["import"]["left_out"].startswith("layer 2, the last one")
    assert vector.default_layers == "none"
    assert vector.metadata["import"]["convention"] == "one row a block: row L is the output of block L"


def test_a_row_more_than_blocks_begins_with_the_embeddings() -> None:
    vector = read(saved(stack(LAYERS + 1)))
    assert first_values(vector) == {0: 2, 1: 3}
    assert vector.default_layers == "none"
    assert "row 0 is the embeddings and is left out" in vector.metadata["import"]["convention"]


def test_one_block_has_one_row() -> None:
    vector = decode(saved(stack(1)), num_layers=1, hidden_size=HIDDEN)
    assert first_values(vector) == {0: 1}


@pytest.mark.parametrize("rows", [0, 2, LAYERS + 2])
def test_another_number_of_rows_is_refused(rows: int) -> None:
    with pytest.raises(InvalidVector, match=f"has {rows} rows, but the model has 3 blocks|holds an empty tensor"):
        read(saved(torch.ones(rows, HIDDEN)))


def test_rows_of_zeros_are_layers_without_a_direction() -> None:
    rows = stack(LAYERS)
    rows[1] = 0
    vector = read(saved(rows), layers="0,2")
    assert first_values(vector) == {0: 1, 2: 3}
    assert vector.metadata["import"]["layers_without_direction"] == [1]
    with pytest.raises(InvalidVector, match="every row is all zeros"):
        read(saved(rows * 0))
    rows[2, 3] = float("nan")
    with pytest.raises(InvalidVector, match=r"residual\.2 contains NaN at index 3"):
        read(saved(rows), layer=2)


@pytest.mark.parametrize("options", [{"layer": 2}, {"layers": [2]}, {"layers": "2"}])
@pytest.mark.parametrize("extra", [0, 1])
def test_layers_of_a_stack_are_chosen(options: dict[str, Any], extra: int) -> None:
    vector = read(saved(stack(LAYERS + extra)), **options)
    assert first_values(vector) == {2: 3 + extra}
    assert vector.default_layers == "all"
    assert vector.metadata["import"]["selected"] == "layers 2 of 3, as the upload asked"
    with pytest.raises(InvalidVector, match="no direction for layers 7; its layers are 0, 1, 2") as caught:
        read(saved(stack(LAYERS)), layer=7)
    assert caught.value.param == "layer"


def test_rows_may_be_alternatives_for_one_layer() -> None:
    for rows in (2, LAYERS, LAYERS + 1, LAYERS + 2):
        vector = read(saved(stack(rows)), layer=1, row=1)
        assert first_values(vector) == {1: 2}
        assert vector.metadata["import"]["row"] == f"1 of {rows} alternatives for one layer"
        with pytest.raises(InvalidVector, match=f"row: the file has rows 0 to {rows - 1}, got {rows}"):
            read(saved(stack(rows)), layer=1, row=rows)
    with pytest.raises(InvalidVector, match="give layer as well"):
        read(saved(stack(2)), row=1)


@pytest.mark.parametrize("form", ["{}", "layer_{}", "layer.{}", "layer{}", int])
@pytest.mark.parametrize("container", [dict, OrderedDict])
def test_keys_are_blocks(form: Any, container: Any) -> None:
    key = form if form is int else form.format
    content = container((key(layer), ramp(layer)) for layer in (2, 1))
    vector = read(saved(content))
    assert first_values(vector) == {1: 1, 2: 2}
    assert "key L is the output of block L" in vector.metadata["import"]["convention"]


@pytest.mark.parametrize(
    ("layer_type", "site"),
    [
        ("decoder_block", "residual"),
        ("self_attn", "attention"),
        ("mlp", "mlp"),
        ("post_attention_layernorm", "post_attention_norm"),
        (None, "residual"),
    ],
)
def test_steering_vectors_library(layer_type: str | None, site: str) -> None:
    content: dict[str, Any] = {"layer_activations": {1: ramp(), 2: ramp(2)}}
    if layer_type is not None:
        content["layer_type"] = layer_type
    vector = read(saved(content))
    assert vector.site == site
    assert first_values(vector) == {1: 1, 2: 2}


@pytest.mark.parametrize("layer_type", ["input_layernorm", 3, ["mlp"], ramp()])
def test_unknown_layer_type_is_refused(layer_type: Any) -> None:
    with pytest.raises(InvalidVector, match="layer_type: expected one of decoder_block") as caught:
        read(saved({"layer_activations": {1: ramp()}, "layer_type": layer_type}))
    assert caught.value.param == "layer_type"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (ramp().int(), "residual.1: expected one of .*, got int32"),
        (torch.ones(HIDDEN, dtype=torch.bool), "residual.1: expected one of .*, got bool"),
        (ramp() * 0, "residual.1 is all zeros"),
        (torch.ones(HIDDEN + 1), r"shape \[5\], but the model's hidden size is 4"),
        (torch.ones(HIDDEN, LAYERS), r"shape \[4, 3\], but the model's hidden size is 4"),
        (torch.ones(2, 2, HIDDEN), r"got \[2, 2, 4\]"),
        (torch.tensor(1.0), r"got \[\]"),
        (torch.empty(0), r"shape \[0\]|is empty"),
    ],
)
def test_unusable_tensor_is_named(content: torch.Tensor, says: str) -> None:
    with pytest.raises(InvalidVector, match=says):
        read(saved(content), layer=1)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({}, "has no directions"),
        ([ramp(), ramp()], "expected a tensor or tensors by name, got a list"),
        ("text", "got a str"),
        (3, "got a int"),
        (None, "got a NoneType"),
        ({"vector": ramp()}, "does not say its layer"),
        ({"weight": ramp(), "bias": torch.ones(1)}, "expected one tensor, or names with layers .* weight .*probes"),
        ({"labels": {"a": 1}, "vector": ramp()}, "the entry 'labels' is not a tensor but a dict"),
        ({-1: ramp()}, "a dict key outside 0 to 9999"),
        ({"\u0661": ramp()}, "does not say its layer"),
        ({"\ud800": ramp()}, "does not say its layer"),
        ({10**300: ramp()}, "a dict key outside 0 to 9999"),
        ({4097: ramp()}, "expected layers from 0 to 4095, got 4097"),
        ({True: ramp()}, "as a dict key|expected layers"),
        ({1.0: ramp()}, "as a dict key"),
        ({None: ramp()}, "as a dict key"),
        ({1: [1.0]}, "the entry '1' is not a tensor"),
        ({1: ramp(), "1": ramp()}, "layer 1 appears twice"),
        ({1: torch.ones(3)}, r"the entry '1' has shape \[3\], but the hidden size is 4"),
        ({1: torch.ones(2, 2, 1)}, "the entry '1' has shape"),
        ({"layer_activations": {}}, "has no directions"),
        ({"layer_activations": ramp()}, "has no directions"),
        ({"layer_activations": {"layer_activations": {1: ramp()}}}, "expected layers"),
    ],
)
def test_unusable_content_is_named(content: Any, says: str) -> None:
    with pytest.raises(InvalidVector, match=says):
        read(saved(content))


def test_options_of_other_formats_are_refused() -> None:
    with pytest.raises(InvalidVector, match="counts layers in one way only"):
        read(saved(stack(LAYERS)), convention="as_applied")
    with pytest.raises(InvalidVector, match="no direction for layers 2; its layers are 1"):
        read(saved({1: ramp()}), layer=2)
    with pytest.raises(InvalidVector, match="metadata must be a JSON object"):
        read(saved({1: ramp()}), metadata=[1])


# The reader of archives, against torch.load


def same(ours: Any, theirs: Any) -> bool:
    if isinstance(theirs, torch.Tensor):
        return ours.dtype is theirs.dtype and ours.shape == theirs.shape and torch.equal(ours, theirs)
    if isinstance(theirs, dict):
        return list(ours) == list(theirs) and all(same(ours[key], theirs[key]) for key in theirs)
    if isinstance(theirs, list | tuple):
        return len(ours) == len(theirs) and all(map(same, ours, theirs)) and type(ours) is type(theirs)
    return type(ours) is type(theirs) and ours == theirs


WITH_ATTRIBUTES: OrderedDict[str, Any] = OrderedDict(a=ramp())
WITH_ATTRIBUTES._metadata = OrderedDict(version=1)  # type: ignore[attr-defined]
SHARED = torch.randn(3, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "content",
    [
        ramp(),
        torch.nn.Parameter(ramp()),
        SHARED.T,
        SHARED[1:, ::3],
        SHARED.expand(5, 3, 8),
        [SHARED, SHARED[1], SHARED.view(-1)],
        *(
            ramp().to(dtype)
            for dtype in (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16)
        ),
        *(ramp().to(dtype) for dtype in (torch.int8, torch.uint8, torch.bool)),
        {"a": [1, -1, 255, 256, 70000, -(2**31), 2**31, 10**300, 1.5, None, True, False, "größer", ()]},
        {"t": ((1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)), 3: {}, "": []},
        OrderedDict([("b", ramp()), ("a", OrderedDict())]),
        WITH_ATTRIBUTES,
        torch.nn.Linear(3, 2).state_dict(),
        {layer: torch.full((2,), float(layer)) for layer in range(300)},
    ],
)
def test_what_torch_saves_is_read_as_torch_loads_it(content: Any) -> None:
    data = saved(content)
    assert same(read_archive(data), torch.load(io.BytesIO(data), weights_only=True))


# Code


class Runs:
    """A pickle that calls something when it is read as pickles are."""

    def __init__(self, call: Any, *arguments: Any) -> None:
        self.call = call
        self.arguments = arguments

    def __reduce__(self) -> Any:
        return self.call, self.arguments


def test_pickle_that_would_run_code_is_refused_and_nothing_runs(tmp_path: Path) -> None:
    witness = tmp_path / "ran"
    for call in (
        Runs(os.system, f"touch {witness}"),
        Runs(eval, f"open({str(witness)!r}, 'w')"),
        Runs(os.mkdir, str(witness)),
        Runs(getattr, "a", "upper"),
    ):
        for content in (call, {1: call}, {"layer_activations": {1: ramp()}, "x": call}, [ramp(), call]):
            with pytest.raises(InvalidVector, match="only tensors and plain containers are read"):
                read(saved(content), layer=1)
            with pytest.raises(InvalidVector, match="bare pickle"):
                read(pickle.dumps(content))
    assert not witness.exists()
    torch.load(io.BytesIO(saved(Runs(os.mkdir, str(witness)))), weights_only=False)
    assert witness.exists(), "the files of this test would run code if they were trusted"


@pytest.mark.parametrize(
    "operations",
    [
        name("os system") + group(text("true")) + b"R",
        name("builtins eval") + group(text("1")) + b"R",
        name("torch load") + group(text("x")) + b"R",
        name("torch._utils _rebuild_device_tensor_from_numpy") + b")R",
        name("torch FloatStorage") + group(number(1 << 30)) + b"R",
        name("collections OrderedDict") + group(b"](" + group(text("a"), number(1)) + b"e") + b"R",
        name("collections OrderedDict") + b")\x81",
        b"(" + name("os system")[1:-1].join([b"i", b"\n"]) + b"R",
        b"(i" + b"os\nsystem\n",
        b"(" + name("os system") + text("true") + b"o",
        text("os") + text("system") + b"\x93" + group(text("true")) + b"R",
        b"\x82\x01",
        b"\x83\x01\x00",
        b"Psystem\n",
        number(1) + group(number(1)) + b"R",
        text("builtins eval") + group(text("1")) + b"R",
        name("collections OrderedDict") + b"}b",
        TENSOR + b"}b",
    ],
)
def test_operation_that_could_call_or_build_is_refused(operations: bytes) -> None:
    with pytest.raises(InvalidVector):
        read(archive(operations), layer=1)


def test_a_second_pickle_or_code_in_the_archive_is_refused() -> None:
    for extra in ("archive/code/__torch__.py", "archive/constants.pkl", "other/data.pkl"):
        with pytest.raises(InvalidVector, match=r"code or a second pickle|without data\.pkl"):
            read(archive(TENSOR, extra={extra: b""}), layer=1)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_bare_pickle_is_refused_saying_what_to_do(protocol: int) -> None:
    with pytest.raises(InvalidVector, match=r"file of torch\.save of PyTorch 1\.6 or later"):
        read(pickle.dumps({1: [1.0]}, protocol=protocol))


def test_file_of_an_old_torch_is_refused_saying_what_to_do() -> None:
    buffer = io.BytesIO()
    torch.save(ramp(), buffer, _use_new_zipfile_serialization=False)
    with pytest.raises(InvalidVector, match=r"file of torch\.save of PyTorch 1\.6 or later"):
        read(buffer.getvalue(), layer=1)


# Lies about sizes, and bombs

DOUBLING = b"".join(b"q\x01h\x01\x86" for _ in range(64))
"""64 tuples of twice the one before: to hash or to print it takes 2^64 steps."""
SAME_HASH = (7 + step * sys.hash_info.modulus for step in range(20_000))
"""Whole numbers that a dict compares each with all before it."""
DEEP = b"\x85" * 150_000
"""A tuple nested so deep that hashing it overflows a C stack."""


@pytest.mark.parametrize(
    ("operations", "says"),
    [
        (rebuilt(storage(length=1 << 30), size=(1 << 30,)), "does not have the declared length"),
        (rebuilt(storage(length=1 << 62), size=(4,)), "does not have the declared length"),
        (rebuilt(storage(length=5)), "does not have the declared length"),
        (rebuilt(storage(length=3), size=(3,)), "does not have the declared length"),
        (rebuilt(storage(length=-4)), "does not have the declared length"),
        (rebuilt(storage(kind="torch HalfStorage")), "does not have the declared length"),
        (rebuilt(storage(), size=(5,)), "damaged"),
        (rebuilt(storage(), size=(1 << 40,)), "damaged"),
        (rebuilt(storage(), offset=1), "damaged"),
        (rebuilt(storage(), offset=-1), "damaged"),
        (rebuilt(storage(), stride=(-1,)), "damaged"),
        (rebuilt(storage(), stride=(1 << 61,)), "damaged"),
        (rebuilt(storage(), size=(-4,)), "damaged"),
        (rebuilt(storage(), size=(2, 2)), "damaged"),
        (rebuilt(storage(), size=(1 << 62,), stride=(0,)), r"shape \[4611686018427387904\]|damaged"),
        (rebuilt(storage(), size=(1 << 31, 1 << 20, 4), stride=(0, 0, 1)), "shape|damaged"),
        (rebuilt(storage(), size=(1 << 36, 4), stride=(0, 1)), "but the model has 3 blocks|no direction|rows"),
        (rebuilt(storage("1")), "not in the archive"),
        (rebuilt(storage("../version")), "not in the archive"),
        (rebuilt(storage(kind="torch._utils _rebuild_tensor_v2")), "not in the archive"),
        (rebuilt(storage(), more=b"}" + text("neg") + b"\x88s"), "conjugated or negated"),
        (group(text("storage"), number(1), text("0"), text("cpu"), number(4)) + b"Q", "damaged"),
        (text("storage") + b"Q", "damaged"),
        (storage(), "got a _Storage"),
        (name("torch FloatStorage"), "got a _Name"),
        (b"}" + text("a") + DOUBLING + number(1) + b"s", "a tuple as a dict key"),
        (b"}" + text("a") + DEEP + number(1) + b"s", "a tuple as a dict key"),
        (b"}(" + b"".join(number(key) + b"N" for key in SAME_HASH) + b"u", "a dict key outside 0 to 9999"),
        (b"}(" + b"".join(text(str(key)) + b"N" for key in range(10_001)) + b"u", "more than 10000 entries"),
        (rebuilt(storage(), size=(1,) * 9, stride=(1,) * 9), "a tensor of 9 dimensions"),
        (rebuilt(storage(), more=b"N" * 2), "conjugated or negated"),
        (b"}" + number(1) + text("a") + DOUBLING + b"s", "the entry '1' is not a tensor"),
        (b"}" + number(1) + text("a") + DEEP + b"s", "the entry '1' is not a tensor"),
        (text("a") + DEEP, "got a tuple"),
        (b"]" * 100_000 + b"a" * 99_999, "got a list"),
        (
            b"}"
            + text("layer_activations")
            + b"}"
            + number(1)
            + TENSOR
            + b"ss"
            + text("layer_type")
            + text("a")
            + DOUBLING
            + b"s",
            "layer_type",
        ),
        (
            b"}"
            + text("layer_activations")
            + b"}"
            + number(1)
            + TENSOR
            + b"ss"
            + text("layer_type")
            + text("a")
            + DEEP
            + b"s",
            "layer_type",
        ),
        (
            b"}"
            + text("layer_activations")
            + b"}"
            + number(1)
            + TENSOR
            + b"ss"
            + text("layer_type")
            + b"]" * 2000
            + b"a" * 1999
            + b"s",
            "layer_type",
        ),
        (b"]q\x01h\x01a", "got a list"),
        (b"}q\x01" + text("layer_activations") + b"h\x01s", "expected layers"),
        (b"N0" * 100_000 + TENSOR, "builds objects"),
        (b"(" * 100_000 + TENSOR, "does not end with one value"),
        (b"N" + b"q\x01" * 500_001, "more than 500000 operations"),
        (b"N" + b"".join(b"r" + struct.pack("<I", 8_000 * i) for i in range(200_000)), "got a NoneType"),
        (b"N" + b"r\xff\xff\xff\x7f" + TENSOR, "does not end with one value"),
        (b"X\xff\xff\xff\xffabc", "damaged"),
        (b"\x8d" + b"\xff" * 8 + b"abc", "damaged"),
        (b"B\xff\xff\xff\x7fabc", "damaged"),
        (b"\x8b\xff\xff\xff\x7fabc", "damaged"),
        (b"L" + b"9" * 5000 + b"L\n", "damaged"),
        (b"h\x05", "damaged"),
        (b"0", "builds objects"),
        (b"", "damaged"),
        (b"R", "damaged"),
        (b"t", "damaged"),
        (b"(a", "damaged"),
        (b"]s", "damaged"),
        (b"}(" + number(1) + b"u", "damaged"),
        (TENSOR + b"\xff", "damaged"),
    ],
)
def test_lie_or_bomb_is_refused_without_its_price(operations: bytes, says: str) -> None:
    data = archive(operations)
    before = resource.getrusage(resource.RUSAGE_SELF)
    with pytest.raises(InvalidVector, match=says):
        read(data, **({} if b"layer_activations" in operations or operations[:1] == b"}" else {"layer": 1}))
    after = resource.getrusage(resource.RUSAGE_SELF)
    assert after.ru_maxrss - before.ru_maxrss < 200 << 10, "KiB of memory"


def test_the_lies_are_lies_for_their_one_fault_only() -> None:
    assert torch.equal(read(archive(TENSOR), layer=1).directions[1], ramp())
    half = rebuilt(storage(length=8, kind="torch HalfStorage"), size=(4,), stride=(2,))
    assert read(archive(half, {"0": struct.pack("<8e", *range(1, 9))}), layer=1).directions[1].tolist() == [1, 3, 5, 7]
    assert read(archive(rebuilt(storage(device="cuda:0"))), layer=1) == read(archive(TENSOR), layer=1)


def test_one_storage_under_many_tensors_is_read_once() -> None:
    """5,000 tensors over one MiB of data are not 5 GiB."""
    record = FOUR + bytes((1 << 20) - 16)
    tensors = b"".join(number(layer) + rebuilt(storage(length=1 << 18)) for layer in range(5000))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InvalidVector, match="expected layers from 0 to 4095, got 4096"):
        read(archive(b"}(" + tensors + b"u", {"0": record}))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10


def test_compressed_archive_is_read() -> None:
    assert read(archive(TENSOR, compression=zipfile.ZIP_DEFLATED), layer=1) == read(archive(TENSOR), layer=1)


def patched_directory(data: bytes, member: str, offset: int, value: int) -> bytes:
    """`data` with a 32-bit number of one member's central directory entry changed."""
    start = data.rindex(b"PK\x01\x02", 0, data.rindex(member.encode()))
    return data[: start + offset] + struct.pack("<I", value) + data[start + offset + 4 :]


@pytest.mark.parametrize("offset", [20, 24])
@pytest.mark.parametrize("size", [0, 15, 17, 1 << 30, (1 << 32) - 2])
def test_announced_sizes_are_not_believed(offset: int, size: int) -> None:
    data = patched_directory(archive(TENSOR), "archive/data/0", offset, size)
    try:
        vector = read(data, layer=1)
    except InvalidVector:
        return
    assert torch.equal(vector.directions[1], ramp())


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_member_named_twice_is_refused() -> None:
    for twice in ("archive/data/0", "archive/data.pkl"):
        with pytest.raises(InvalidVector, match="two members of the same name"):
            read(archive(TENSOR, extra={twice: FOUR}), layer=1)


def test_too_many_members_and_too_long_a_pickle_are_refused() -> None:
    with pytest.raises(InvalidVector, match="more than 10000 members"):
        read(archive(TENSOR, {str(key): b"" for key in range(10_001)}), layer=1)
    with pytest.raises(InvalidVector, match="pickle is larger than 32 MiB"):
        read(archive(text("x" * (33 << 20))), layer=1)


def test_a_directory_of_a_million_members_is_not_read() -> None:
    num_members = 1_000_000
    directory = struct.pack("<4s42x", b"PK\x01\x02") * num_members
    local = b"PK\x03\x04" + bytes(26)
    end = struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, 1, 1, len(directory), len(local), 0)
    data = local + directory + end
    tracemalloc.start()
    try:
        with pytest.raises(InvalidVector, match="more than 10000 members"):
            read(data, layer=1)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 1 << 20


def test_damaged_data_is_refused_by_its_checksum() -> None:
    data = archive(TENSOR)
    with pytest.raises(InvalidVector, match="damaged"):
        read(data.replace(FOUR, FOUR[::-1]), layer=1)


def test_big_endian_archive_is_refused() -> None:
    with pytest.raises(InvalidVector, match="little-endian"):
        read(archive(TENSOR, byteorder=b"big"), layer=1)


def test_another_zip_is_refused() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("word/document.xml", "<x/>")
    with pytest.raises(
        InvalidVector, match=r"^zip: expected an archive of torch\.save .* its members are word/document"
    ):
        read(buffer.getvalue())
    with pytest.raises(VectorsError, match=r"^zip: the archive is damaged"):
        read(b"PK\x03\x04" + bytes(100))


# Published files


@needs_files
@pytest.mark.parametrize("file", ["safety", "sentiment"])
def test_published_easyedit_vector(file: str) -> None:
    data = (FILES / "easyedit" / f"{file}.pt").read_bytes()
    vector = decode(data, options=ImportOptions(layer=20), num_layers=28, hidden_size=3584)
    theirs = torch.load(io.BytesIO(data), weights_only=True)
    assert vector.directions[20].dtype is torch.bfloat16
    assert torch.equal(vector.directions[20], theirs)
    vector.fit(28, 3584, ["residual"])
    with pytest.raises(InvalidVector, match="upload it with metadata"):
        decode(data, num_layers=28, hidden_size=3584)
    with pytest.raises(InvalidVector, match="hidden size is 2048"):
        decode(data, options=ImportOptions(layer=20), num_layers=28, hidden_size=2048)


@needs_files
def test_published_hidden_directions_vector() -> None:
    data = (FILES / "hidden-directions" / "v_pref_quantum_skeptic.pt").read_bytes()
    vector = decode(data, num_layers=28, hidden_size=3584)
    theirs = torch.load(io.BytesIO(data), weights_only=True)
    assert vector.layers == tuple(range(27))  # the last row was read behind the final norm
    assert all(torch.equal(vector.directions[layer], theirs[layer]) for layer in vector.layers)
    last = decode(data, options=ImportOptions(layer=27), num_layers=28, hidden_size=3584)
    assert torch.equal(last.directions[27], theirs[27])
    with pytest.raises(InvalidVector, match="28 rows, but the model has 26 blocks"):
        decode(data, num_layers=26, hidden_size=3584)
