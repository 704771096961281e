"""GGUF control vectors, against the `gguf` package as writer and as reader."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from vectors.errors import InvalidVector
from vectors.formats import ImportOptions, decode
from vectors.formats.gguf import encode_gguf
from vectors.vector import SteeringVector
from vectors.vocabulary import OPERATIONS, SITES

HIDDEN = 5


def ramp(factor: float = 1.0) -> torch.Tensor:
    return torch.arange(1, HIDDEN + 1) * factor


def read(data: bytes, **options: Any) -> SteeringVector:
    return decode(data, options=ImportOptions.from_json(options), num_layers=8, hidden_size=HIDDEN)


def repeng_file(path: Path, directions: dict[int, np.ndarray[Any, Any]], model: str = "mistral") -> bytes:
    """What repeng's `ControlVector.export_gguf` writes, with the same calls."""
    writer = gguf.GGUFWriter(path, "controlvector")
    writer.add_string("controlvector.model_hint", model)
    writer.add_uint32("controlvector.layer_count", len(directions))
    for layer in directions:
        writer.add_tensor(f"direction.{layer}", directions[layer])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def text(value: str | bytes) -> bytes:
    encoded = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(encoded)) + encoded


ARCHITECTURE = text("general.architecture") + struct.pack("<I", 8) + text("controlvector")


def raw(
    fields: list[bytes] | None = None,
    infos: list[bytes] | None = None,
    body: bytes = struct.pack("<5f", 1, 2, 3, 4, 5),
    *,
    version: int = 3,
    num_fields: int | None = None,
    num_tensors: int | None = None,
    alignment: int = 32,
) -> bytes:
    """A file with any of its parts false."""
    fields = [ARCHITECTURE] if fields is None else [ARCHITECTURE, *fields]
    infos = [info()] if infos is None else infos
    header = b"GGUF" + struct.pack(
        "<IQQ",
        version,
        len(infos) if num_tensors is None else num_tensors,
        len(fields) if num_fields is None else num_fields,
    )
    header += b"".join(fields) + b"".join(infos)
    return header + bytes(-len(header) % alignment) + body


def info(
    name: str | bytes = "direction.1", shape: tuple[int, ...] = (HIDDEN,), kind: int = 0, offset: int = 0
) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def field(name: str, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_file_of_the_reference_writer_is_read(tmp_path: Path, dtype: Any) -> None:
    given = {layer: np.arange(1, HIDDEN + 1).astype(dtype) * layer for layer in (7, 1, 3)}
    vector = read(repeng_file(tmp_path / "v.gguf", given))
    assert vector.layers == (1, 3, 7)
    assert vector.site == "residual"
    assert vector.operation == "add"
    for layer in given:
        assert vector.directions[layer].numpy().dtype == dtype
        assert np.array_equal(vector.directions[layer].numpy(), given[layer])
    assert vector.metadata["import"]["model_hint"] == "mistral"


def test_bfloat16_is_read(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "v.gguf", "controlvector")
    given = torch.tensor([1.0, -2.5, 3.0, 0.5, 8.0], dtype=torch.bfloat16)
    packed = given.view(torch.uint8).numpy()
    writer.add_tensor("direction.2", packed, raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    vector = read((tmp_path / "v.gguf").read_bytes())
    assert torch.equal(vector.directions[2], given)


def test_the_two_ways_to_count_layers(tmp_path: Path) -> None:
    given = {layer: np.full(HIDDEN, layer, dtype=np.float32) for layer in (1, 2, 7)}
    data = repeng_file(tmp_path / "v.gguf", given)
    applied, derived = read(data, convention="as_applied"), read(data, convention="as_derived")
    assert read(data) == applied
    assert {layer: float(row[0]) for layer, row in applied.directions.items()} == {1: 1, 2: 2, 7: 7}
    assert {layer: float(row[0]) for layer, row in derived.directions.items()} == {0: 1, 1: 2, 6: 7}
    assert applied.metadata["import"]["convention"].startswith(
        "as_applied: direction.N is added to the output of block N,"
    )
    assert derived.metadata["import"]["convention"].startswith(
        "as_derived: direction.N is added to the output of block N-1"
    )
    assert applied.revision != derived.revision


def test_layer_zero_is_read_as_applied_only() -> None:
    data = raw(infos=[info("direction.0")])
    assert read(data).layers == (0,)
    with pytest.raises(InvalidVector, match="there is no block before 0") as caught:
        read(data, convention="as_derived")
    assert caught.value.param == "direction.0"


def test_upload_sets_fields_and_adds_to_the_metadata(tmp_path: Path) -> None:
    data = repeng_file(tmp_path / "v.gguf", {1: np.ones(HIDDEN, dtype=np.float32)})
    vector = read(data, default_scale=2, metadata={"by": "me"}, description="x", site="mlp")
    assert vector.default_scale == 2
    assert vector.site == "mlp"
    assert vector.metadata["by"] == "me"
    assert vector.metadata["import"]["format"] == "gguf"
    nothings: list[Any] = [None, [], "x"]
    for metadata in nothings:
        with pytest.raises(InvalidVector, match="metadata must be a JSON object"):
            read(data, metadata=metadata)
    with pytest.raises(InvalidVector, match="no direction for layers 2; its layers are 1"):
        read(data, layer=2)
    with pytest.raises(InvalidVector, match="names give their layers"):
        read(data, layer=1, row=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("hidden", [1, 5, 8, 64])
def test_written_file_is_read_by_the_reference_reader(tmp_path: Path, hidden: int, dtype: torch.dtype) -> None:
    seeded = torch.Generator().manual_seed(5)
    vector = SteeringVector(
        {layer: torch.randn(hidden, generator=seeded).to(dtype) for layer in (3, 1, 12)}, description="größer"
    )
    (tmp_path / "v.gguf").write_bytes(encode_gguf(vector, model_hint="llama"))
    reader = gguf.GGUFReader(tmp_path / "v.gguf")
    assert reader.fields["general.architecture"].contents() == "controlvector"
    assert reader.fields["controlvector.model_hint"].contents() == "llama"
    assert reader.fields["controlvector.layer_count"].contents() == 3
    assert reader.fields["general.description"].contents() == "größer"
    assert [tensor.name for tensor in reader.tensors] == ["direction.1", "direction.3", "direction.12"]
    for tensor, layer in zip(reader.tensors, (1, 3, 12), strict=True):
        assert tensor.tensor_type == gguf.GGMLQuantizationType.F32
        assert np.array_equal(np.asarray(tensor.data), vector.directions[layer].float().numpy())


def test_written_file_is_read_back() -> None:
    vector = SteeringVector({1: ramp(), 6: ramp(-0.5)}, model="base")
    again = read(encode_gguf(vector))
    assert {layer: row.tolist() for layer, row in again.directions.items()} == {
        1: ramp().tolist(),
        6: ramp(-0.5).tolist(),
    }
    assert again.metadata["import"]["model_hint"] == "base"
    assert encode_gguf(vector) == encode_gguf(vector)


@pytest.mark.parametrize(
    ("vector", "says"),
    [
        (SteeringVector({0: ramp(), 1: ramp()}), r"cannot have layer 0, because llama.cpp rejects direction.0"),
        *(
            (SteeringVector({1: ramp()}, site=site), f"this vector is add at {site}")
            for site in SITES
            if site != "residual"
        ),
        *(
            (SteeringVector({1: ramp()}, operation=operation), f"this vector is {operation} at residual")
            for operation in OPERATIONS
            if operation != "add"
        ),
    ],
)
def test_what_a_control_vector_cannot_say_is_not_written(vector: SteeringVector, says: str) -> None:
    with pytest.raises(InvalidVector, match=says) as caught:
        encode_gguf(vector)
    assert caught.value.param == "format"


def test_file_with_a_header_like_safetensors_is_still_gguf() -> None:
    """123 tensors put a `{` where a safetensors header has one."""
    infos = [info(f"direction.{layer}", (1,), offset=32 * layer) for layer in range(123)]
    body = b"".join(struct.pack("<f", layer + 1) + bytes(28) for layer in range(123))
    vector = decode(raw(infos=infos, body=body), num_layers=123, hidden_size=1)
    assert [float(row[0]) for row in vector.directions.values()] == list(range(1, 124))


def test_versions_and_alignments() -> None:
    assert read(raw(version=2)).layers == (1,)
    alignment = field("general.alignment", 4, struct.pack("<I", 64))
    assert torch.equal(read(raw([alignment], alignment=64)).directions[1], ramp())
    every_kind = [
        field(f"kind.{kind}", kind, bytes(size))
        for kind, size in {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}.items()
    ]
    lists = field("list", 9, struct.pack("<IQ", 9, 1) + struct.pack("<IQ", 8, 2) + text("a") + text("b"))
    assert torch.equal(read(raw([*every_kind, lists])).directions[1], ramp())


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"GGUF", "truncated"),
        (raw(version=1), "expected GGUF version 2 or 3, got 1"),
        (raw(version=4), "version 2 or 3, got 4"),
        (raw(version=3 << 24), "version 2 or 3, got 50331648"),
        (raw(num_tensors=1 << 40), "declares 1099511627776 tensors"),
        (raw(num_fields=1 << 62), "declares 4611686018427387904 metadata entries"),
        (raw(num_fields=2), "."),
        (raw(num_tensors=2), "."),
        (raw(num_tensors=0), "has no directions"),
        (raw(num_fields=0, num_tensors=0), "has no directions"),
        (
            raw([field("general.architecture", 8, text("llama"))], infos=[info("blk.0.attn_q.weight")]),
            r"GGUF \(architecture llama\): expected tensors named direction.\{layer\}, got 'blk.0.attn_q.weight'",
        ),
        (raw([text("a") + struct.pack("<I", 8) + struct.pack("<Q", 1 << 60)]), "truncated"),
        (raw([struct.pack("<Q", (1 << 64) - 1)]), "truncated"),
        (raw([text(b"\xff\xfe") + struct.pack("<IB", 0, 1)]), "not UTF-8"),
        (raw([field("a", 13, b"")]), "unknown type 13"),
        (raw([field("a", 9, struct.pack("<IQ", 0, 1 << 50))]), "declares 1125899906842624 array elements"),
        (raw([field("a", 9, struct.pack("<IQ", 9, 1) * 3)]), "unknown type 9"),
        (
            raw([field("a", 9, struct.pack("<IQ", 9, 20) + (struct.pack("<IQ", 0, 8000) + bytes(8000)) * 20)]),
            "more than",
        ),
        *(
            (raw([field("general.alignment", kind, value)]), "alignment: expected a whole number")
            for kind, value in [
                (4, struct.pack("<I", 0)),
                (5, struct.pack("<i", -32)),
                (10, struct.pack("<Q", 1 << 40)),
                (6, struct.pack("<f", 32)),
                (8, text("32")),
            ]
        ),
        (raw(infos=[info("residual.1")]), r"named direction.\{layer\}, got 'residual.1'"),
        (raw(infos=[info("direction.01")]), "expected tensors named"),
        (raw(infos=[info("direction.-1")]), "expected tensors named"),
        (raw(infos=[info("direction.\u0661")]), "expected tensors named"),
        (raw(infos=[info("direction.9999")]), "expected layers from 0 to 4095"),
        (raw(infos=[info(shape=())]), r"expected shape \[hidden\] or .*, got 0 dimensions"),
        (raw(infos=[info(shape=(1, HIDDEN))]), "got 2 dimensions"),
        (raw(infos=[text("direction.1") + struct.pack("<I", 1 << 31)]), "."),
        (raw(infos=[info(shape=(0,))]), "direction.1 is empty"),
        (raw(infos=[info(shape=(HIDDEN + 1,))]), "extends past the end"),
        (raw(infos=[info(shape=(1 << 62,))]), "extends past the end"),
        (raw(infos=[info(offset=(1 << 64) - 1)]), "extends past the end"),
        (raw(infos=[info(), info()]), "direction.1 appears twice"),
        (raw(infos=[info(kind=8)]), "got a quantised"),
        (raw(infos=[info(kind=29)]), "got a quantised or unknown type"),
        (raw(body=bytes(20)), "residual.1 is all zeros"),
        (raw(body=struct.pack("<5f", 1, 2, float("nan"), 4, 5)), "residual.1 contains NaN at index 2"),
        (raw(body=b""), "extends past the end"),
    ],
)
def test_hostile_or_foreign_file_is_refused(data: bytes, says: str) -> None:
    with pytest.raises(InvalidVector, match=says):
        read(data)


def test_the_hostile_files_are_hostile_for_their_one_fault_only() -> None:
    assert torch.equal(read(raw()).directions[1], ramp())


def test_another_width_is_left_to_fit() -> None:
    vector = decode(raw(), num_layers=8, hidden_size=99)
    with pytest.raises(InvalidVector, match="hidden size 5, but the model has 99"):
        vector.fit(8, 99, ["residual"])


def test_overlapping_tensors_do_not_multiply_memory() -> None:
    width, count = 1 << 16, 4000
    infos = [info(f"direction.{layer}", shape=(width,)) for layer in range(count)]
    data = raw(infos=infos, body=struct.pack("<f", 1.0) * width)
    tracemalloc.start()
    try:
        with pytest.raises(InvalidVector, match="overlaps others"):
            read(data)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20, f"{len(data)} bytes asked for {width * 4 * count}"
    finally:
        tracemalloc.stop()
