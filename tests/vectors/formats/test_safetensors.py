"""The canonical format: what is written, what is read, and what is refused."""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors import deserialize

from vectors.errors import InvalidVector, UnknownFormat
from vectors.formats import ImportOptions, decode, format_titles
from vectors.formats.safetensors import encode_safetensors
from vectors.vector import SteeringVector
from vectors.vocabulary import SITES

HIDDEN = 4


def ramp(factor: float = 1.0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (torch.arange(1, HIDDEN + 1) * factor).to(dtype)


def read(data: bytes, **options: Any) -> SteeringVector:
    return decode(data, options=ImportOptions.from_json(options), num_layers=8, hidden_size=HIDDEN)


def file(tensors: dict[str, torch.Tensor], steering_vector: Any = None) -> bytes:
    """As anybody writes it: with the library, and the metadata as text."""
    text = steering_vector if isinstance(steering_vector, str) else json.dumps(steering_vector)
    return safetensors.torch.save(tensors, metadata=None if steering_vector is None else {"steering_vector": text})


def raw(header: Any, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


FULL = SteeringVector(
    {11: ramp(-1), 2: ramp(2)},
    site="attention",
    default_scale=-1.5,
    operation="clamp",
    positions="all",
    description="größer – 大",
    metadata={"b": [1, {"c": None}], "a": 0.1},
    training={"seed": 3},
    model="some/model",
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("site", SITES)
def test_round_trip_is_the_same_vector_bit_for_bit(site: Any, dtype: torch.dtype) -> None:
    seeded = torch.Generator().manual_seed(3)
    vector = SteeringVector({layer: torch.randn(HIDDEN, generator=seeded).to(dtype) for layer in (7, 0, 3)}, site=site)
    again = read(encode_safetensors(vector))
    assert again.revision == vector.revision
    assert again.defaults == vector.defaults
    assert all(again.directions[layer].dtype is dtype for layer in (0, 3, 7))
    assert all(torch.equal(again.directions[layer], vector.directions[layer]) for layer in (0, 3, 7))


def test_round_trip_keeps_every_field_and_the_bytes() -> None:
    data = encode_safetensors(FULL)
    again = read(data)
    assert again == FULL
    assert again.defaults == FULL.defaults
    assert encode_safetensors(again) == data
    other_order = SteeringVector(dict(reversed(list(FULL.directions.items()))), **FULL.defaults)
    assert encode_safetensors(other_order) == data


def test_mixed_dtypes_round_trip() -> None:
    vector = SteeringVector({0: ramp(), 1: ramp(1, torch.float16), 2: ramp(1, torch.bfloat16)})
    assert read(encode_safetensors(vector)) == vector


def test_written_file_is_read_by_the_library() -> None:
    """The contract of api.md, checked without our decoder."""
    tensors = safetensors.torch.load(encode_safetensors(FULL))
    assert {name: tensor.tolist() for name, tensor in tensors.items()} == {
        "attention.2": [2, 4, 6, 8],
        "attention.11": [-1, -2, -3, -4],
    }
    data = encode_safetensors(FULL)
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    assert set(header["__metadata__"]) == {"steering_vector"}
    assert json.loads(header["__metadata__"]["steering_vector"]) == FULL.defaults


def test_bare_file_of_tensors_is_enough() -> None:
    vector = read(safetensors.torch.save({"residual.3": ramp(), "residual.0": ramp(2)}))
    assert vector == SteeringVector({0: ramp(2), 3: ramp()})
    assert read(safetensors.torch.save({"mlp.3": ramp()}, metadata={"format": "pt"})).site == "mlp"


def test_header_of_any_length_is_recognised() -> None:
    """A header of 640 bytes begins with 80 02, like a pickle; it once was refused as one."""
    lengths = set()
    for padding in range(0, 900, 8):
        vector = SteeringVector({0: ramp()}, description="x" * padding)
        data = encode_safetensors(vector)
        lengths.add(struct.unpack_from("<Q", data)[0])
        assert read(data) == vector
    assert {640, 896} <= lengths


def test_a_vector_object_of_the_api_may_be_the_metadata() -> None:
    described = {
        "object": "steering.vector",
        "id": "calm",
        "name": "calm",
        "revision": "ab" * 32,
        "created_at": 1,
        "bytes": 2,
        "norms": {"3": 1.0},
        "layers": [0, 3],
        "hidden_size": HIDDEN,
        "default_scale": 2,
        "site": "residual",
        "training": None,
    }
    vector = read(file({"residual.0": ramp(), "residual.3": ramp()}, described))
    assert vector == SteeringVector({0: ramp(), 3: ramp()}, default_scale=2.0)


def test_upload_sets_fields_over_the_files_own() -> None:
    data = file({"mlp.1": ramp()}, {"default_scale": 3, "description": "old", "metadata": {"a": 1}})
    vector = read(data, description="new", operation="ablate", site="mlp")
    assert vector == SteeringVector(
        {1: ramp()}, site="mlp", default_scale=3.0, operation="ablate", description="new", metadata={"a": 1}
    )


@pytest.mark.parametrize(
    ("steering_vector", "says", "param"),
    [
        ("{", "does not hold a JSON object", "steering_vector"),
        ("[1]", "does not hold a JSON object", "steering_vector"),
        ("null", "does not hold a JSON object", "steering_vector"),
        ("[" * 10_000, "does not hold a JSON object", "steering_vector"),
        ("1" * 5000, "does not hold a JSON object", "steering_vector"),
        ({"scale": 2}, "unknown field: expected one of site, default_scale.*, got 'scale'", "steering_vector.scale"),
        ('{"\\ud800": 1}', "unknown field", "steering_vector.?"),
        ({"site": "mlp"}, "has site 'mlp', but the tensors have residual", "site"),
        ({"layers": [0]}, "has other layers", "steering_vector.layers"),
        ({"layers": "0-3"}, "has other layers", "steering_vector.layers"),
        ({"hidden_size": 5}, "has other hidden_size", "steering_vector.hidden_size"),
        ({"default_scale": "1"}, "default_scale: expected a finite number", "default_scale"),
        ('{"default_scale": NaN}', "default_scale: expected a finite number", "default_scale"),
        ('{"default_scale": 1e999}', "default_scale: expected a finite number", "default_scale"),
        ('{"default_scale": 1' + "0" * 400 + "}", "default_scale: expected a finite number", "default_scale"),
        ('{"metadata": {"a": Infinity}}', "metadata must be a JSON object with finite", "metadata"),
        ('{"metadata": {"a": "\\ud800"}}', "metadata must be .* valid Unicode", "metadata"),
        ('{"description": "\\ud800"}', "description must be valid Unicode", "description"),
        ({"positions": "some"}, "positions: expected one of", "positions"),
        ({"training": 1}, "training must be a JSON object", "training"),
    ],
)
def test_unusable_metadata_is_named(steering_vector: Any, says: str, param: str) -> None:
    with pytest.raises(InvalidVector, match=says) as caught:
        read(file({"residual.0": ramp(), "residual.3": ramp()}, steering_vector))
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({"residual.0": ramp(), "mlp.1": ramp()}, "expected directions at one site, got mlp, residual"),
        ({}, "has no tensors"),
        ({"residual.0": ramp(), "a": ramp()}, r"named \{site\}.\{layer\}, .*, got 'a'; sites are residual, attention"),
        ({"residual": ramp()}, "does not say its layer"),
        ({"residual.-1": ramp()}, "does not say its layer"),
        ({"residual.1.weight": ramp()}, "does not say its layer"),
        ({"residual.1\n": ramp()}, "does not say its layer"),
        ({"residual.1": ramp(), "residual.1\u0661": ramp()}, "expected tensors named"),
        ({"residual.4097": ramp()}, "expected layers from 0 to 4095, got 4097"),
        ({"residual.1": ramp().reshape(1, 1, HIDDEN)}, r"residual.1: expected shape \[hidden\] or .*, got \[1, 1, 4\]"),
        ({"residual.1": torch.tensor(1.0)}, r"residual.1: .* got \[\]"),
        ({"residual.1": torch.empty(0)}, r"residual.1: .* got \[0\]"),
        ({"residual.1": ramp(), "residual.2": torch.ones(3)}, "different hidden sizes"),
        ({"residual.1": ramp().double()}, "residual.1: expected one of .*, got float64"),
        ({"residual.1": ramp().long()}, "residual.1: .* got int64"),
        ({"residual.1": ramp().to(torch.float8_e5m2)}, "residual.1: .* got float8_e5m2"),
        ({"residual.1": ramp(), "residual.2": ramp() * math.nan}, "residual.2 contains NaN at index 0"),
        ({"residual.1": ramp() * 0}, "residual.1 is all zeros"),
    ],
)
def test_unusable_tensors_are_named(tensors: dict[str, torch.Tensor], says: str) -> None:
    with pytest.raises(InvalidVector, match=says):
        read(safetensors.torch.save(tensors))


def test_upload_may_not_contradict_the_tensors_names() -> None:
    data = safetensors.torch.save({"mlp.1": ramp()})
    with pytest.raises(InvalidVector, match="another site") as caught:
        read(data, site="residual")
    assert caught.value.param == "site"
    with pytest.raises(InvalidVector, match="no direction for layers 3; its layers are 1") as caught:
        read(data, layer=3)
    assert caught.value.param == "layer"
    with pytest.raises(InvalidVector, match="counts layers in one way only") as caught:
        read(data, convention="as_applied")
    assert caught.value.param == "convention"


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ([], "metadata"),
        ("x", "metadata"),
        ({"scale": 1}, "scale"),
        ({"layer": "3"}, "layer"),
        ({"layer": True}, "layer"),
        ({"layer": 1.5}, "layer"),
        ({"convention": "as_is"}, "convention"),
        ({"convention": ["as_applied"]}, "convention"),
        ({"revision": "ab"}, "revision"),
        ({"directions": {}}, "directions"),
    ],
)
def test_unknown_or_senseless_options_are_named(options: Any, param: str) -> None:
    with pytest.raises(InvalidVector) as caught:
        ImportOptions.from_json(options)
    assert caught.value.param == param


def entry(shape: list[Any], offsets: list[Any], dtype: str = "F32") -> dict[str, Any]:
    return {"residual.0": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


BODY = struct.pack("<4f", 1, 2, 3, 4)


@pytest.mark.parametrize(
    "data",
    [
        b"\xff" * 7 + b"\x7f" + b"{}",
        struct.pack("<Q", 1 << 40) + b"{" + b"x" * 100,
        struct.pack("<Q", (8 << 20) + 8) + b"{" + b" " * ((8 << 20) + 8),
        raw(b"{" * 300_000),
        raw(b'{"a": '),
        raw(b'{"a": 1' + b"0" * 5000 + b"}"),
        raw(b"{\xff\xfe}"),
        raw({"residual.0": 3}),
        raw({"residual.0": {}}),
        raw({"__metadata__": []} | entry([4], [0, 16]), BODY),
        raw({"__metadata__": {"steering_vector": 3}} | entry([4], [0, 16]), BODY),
        raw(entry([4], [0, 16]), BODY[:-1]),
        raw(entry([4], [0, 16]), BODY + b"more"),
        raw(entry([4], [4, 20]), b"----" + BODY),
        raw(entry([4], [16, 0]), BODY),
        raw(entry([5], [0, 16]), BODY),
        raw(entry([4], [0, 1 << 62]), BODY),
        raw(entry([1 << 62], [0, 16]), BODY),
        raw(entry([1 << 40, 1 << 40], [0, 16]), BODY),
        raw(entry([0, 1 << 60], [0, 0])),
        raw(entry([-4], [0, 16]), BODY),
        raw(entry([4.0], [0, 16]), BODY),
        raw(entry([4], [0, 16], "F99"), BODY),
        raw(entry([16], [0, 16], "BOOL"), BODY),
        raw(entry([16], [0, 16], "F8_E8M0"), BODY),
        raw(entry([32], [0, 16], "F4"), BODY),
        raw(
            b'{"residual.0":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},'
            b'"residual.0":{"dtype":"F32","shape":[4],"data_offsets":[16,32]}}',
            BODY * 2,
        ),
        raw(
            {
                "residual.0": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
                "residual.1": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
            },
            BODY,
        ),
    ],
)
def test_hostile_header_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidVector):
        read(data)


def test_the_hostile_headers_are_hostile_for_their_one_fault_only() -> None:
    """The helpers above write good files when nothing is wrong."""
    assert read(raw(entry([4], [0, 16]), BODY)) == SteeringVector({0: ramp()})
    assert deserialize(raw(entry([4], [0, 16]), BODY))


@pytest.mark.parametrize(
    "data", [b"x", b"PK", b"hello world, not a vector", b"\x93NUMPX" + b"x" * 64, b'["directions"]']
)
def test_unknown_bytes_are_refused_naming_what_is_read(data: bytes) -> None:
    with pytest.raises(UnknownFormat, match=re.escape(f"one of {format_titles()};")):
        read(data)


def test_empty_file_is_refused() -> None:
    with pytest.raises(InvalidVector, match="the file is empty"):
        read(b"")


@pytest.mark.parametrize("rank", [None, 1, 3])
def test_read_directions_biases_and_an_activation_come_back(rank: int | None) -> None:
    shape = (HIDDEN,) if rank is None else (rank, HIDDEN)
    generator = torch.Generator().manual_seed(1)
    drawn = {layer: torch.randn(shape, generator=generator) for layer in (2, 11)}
    reads = {layer: torch.randn(shape, generator=generator).to(torch.float16) for layer in drawn}
    vector = SteeringVector(
        drawn, reads, {2: torch.full((rank or 1,), 0.25)}, operation="cap", activation="relu", min=-0.5, max=2.0
    )
    data = encode_safetensors(vector)
    assert {name: tensor["shape"] for name, tensor in deserialize(data)} == {
        "residual.2": list(shape), "residual.2.read": list(shape), "residual.2.bias": [rank or 1],
        "residual.11": list(shape), "residual.11.read": list(shape),
    }  # fmt: skip
    found = read(data)
    assert (found.revision, encode_safetensors(found)) == (vector.revision, data)
    assert (found.activation, found.min, found.max, found.rank) == ("relu", -0.5, 2.0, rank or 1)
    kept = read(data, layer=11)
    assert (list(kept.reads), dict(kept.biases)) == ([11], {})
    others = [
        SteeringVector(drawn, reads, {2: torch.full((rank or 1,), 0.5)}),
        SteeringVector(drawn, reads, {11: torch.full((rank or 1,), 0.25)}),
        SteeringVector(drawn, drawn),
        SteeringVector(drawn, reads, activation="step"),
        SteeringVector(drawn, reads),
    ]
    assert len({other.revision for other in others}) == len(others)


@pytest.mark.parametrize(
    ("tensors", "steering_vector", "message"),
    [
        ({"residual.1.read": ramp()}, None, "the file has no directions"),
        ({"residual.1": ramp(), "residual.2.read": ramp()}, None, "read directions at layers that have directions"),
        ({"residual.1": ramp(), "residual.2": ramp(), "residual.1.read": ramp()}, None, "no read direction at layer 2"),
        ({"residual.1": ramp(), "residual.1.bias": torch.ones(1)}, None, "biases at layers that have read directions"),
        (
            {"residual.1": ramp(), "residual.1.read": ramp(), "residual.1.bias": torch.ones(2)},
            None,
            r"residual.1.bias: expected 1 numbers, got 2",
        ),
        (
            {"residual.1": ramp(), "residual.1.read": ramp(), "residual.1.bias": torch.full((1,), math.nan)},
            None,
            r"bias residual.1.bias contains NaN",
        ),
        ({"residual.1": ramp(), "residual.1.read": ramp() * 0}, None, r"residual.1.read is all zeros"),
        ({"residual.1": ramp(), "residual.1.read": ramp()[:3]}, None, r"expected the shape of residual.1"),
        ({"residual.1": ramp().repeat(2, 1)}, None, r"expected shape \[hidden\] where there are no read directions"),
        ({"residual.1": ramp().repeat(65, 1)}, None, "of rank at most 64"),
        ({"residual.1": ramp()}, {"activation": "tanh"}, "activation: expected one of identity, .*, got 'tanh'"),
        ({"residual.1": ramp()}, {"min": "low"}, "min: expected a finite number"),
        ({"residual.1": ramp()}, {"min": 1.0, "max": 0.5}, "expected min at most max, got 1 and 0.5"),
    ],
)
def test_read_directions_that_cannot_be_used(
    tensors: dict[str, torch.Tensor], steering_vector: Any, message: str
) -> None:
    with pytest.raises(InvalidVector, match=message):
        read(file(tensors, steering_vector))


def test_a_file_of_the_first_layout_keeps_its_bytes_and_its_revision() -> None:
    """Written byte by byte: what version 0.1.0 stored."""
    defaults = (
        '{"default_scale":1.5,"description":"old","metadata":{},"model":null,"operation":"clamp","positions":"all",'
        '"site":"residual","training":null}'
    )
    header = json.dumps(
        {
            "__metadata__": {"steering_vector": defaults},
            "residual.2": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
        },
        separators=(",", ":"),
    )
    header += " " * (-len(header) % 8)
    data = struct.pack("<Q", len(header)) + header.encode() + struct.pack("<4f", 1, 2, 3, 4)
    vector = read(data)
    assert encode_safetensors(vector) == data
    digest = hashlib.sha256(b"tiller steering vector 1\n" + defaults.encode())
    digest.update(b"\n2 float32 4\n" + struct.pack("<4f", 1, 2, 3, 4))
    assert vector.revision == digest.hexdigest()
