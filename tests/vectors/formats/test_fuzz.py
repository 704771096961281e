"""Damaged files: whatever the bytes, a vector that holds or `InvalidVector` comes out, and nothing else."""

from __future__ import annotations

import io
import json
import random
import zipfile
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from tests.vectors.formats.containers import brainpatch, npy, npz, pyvene, repsteer, svec, zipped
from tests.vectors.formats.pickles import saved
from vectors.errors import InvalidVector
from vectors.formats import ImportOptions, decode
from vectors.formats.gguf import encode_gguf
from vectors.formats.safetensors import encode_safetensors
from vectors.vector import DTYPES, SteeringVector

HIDDEN = 8
LAYERS = 3


def directions(dtype: torch.dtype = torch.float32) -> dict[int, torch.Tensor]:
    seeded = torch.Generator().manual_seed(7)
    return {layer: torch.randn(HIDDEN, generator=seeded).to(dtype) for layer in range(LAYERS)}


V = directions()[0]
VECTOR = SteeringVector(directions(), default_scale=2.5, description="calm", metadata={"a": [1]}, training={"seed": 1})
FILES: dict[str, tuple[bytes, ImportOptions]] = {
    "safetensors": (encode_safetensors(VECTOR), ImportOptions()),
    "safetensors-bf16": (encode_safetensors(SteeringVector(directions(torch.bfloat16), site="mlp")), ImportOptions()),
    "gguf": (encode_gguf(SteeringVector({1: torch.ones(HIDDEN), 2: torch.ones(HIDDEN)})), ImportOptions()),
    "pt-one": (saved(directions()[0]), ImportOptions(layer=1)),
    "pt-stack": (saved(torch.stack(list(directions().values()))), ImportOptions()),
    "pt-dict": (saved(directions(torch.float16)), ImportOptions()),
    "pt-library": (saved({"layer_activations": directions(), "layer_type": "mlp"}), ImportOptions()),
    "npy": (npy(directions()[0]), ImportOptions(layer=1)),
    "npz": (npz({f"care_layer{layer}": direction for layer, direction in directions().items()}), ImportOptions()),
    "svec": (svec(directions()), ImportOptions()),
    "brainpatch": (brainpatch([{"layer": 1, "vector": "v", "coefficient": 0.5}], {"v": V}), ImportOptions()),
    "folder-repsteer": (zipped(repsteer(V)), ImportOptions()),
    "folder-pyvene": (zipped(pyvene(V)), ImportOptions()),
}


def holds(data: bytes, options: ImportOptions) -> bool:
    """True for a vector that can be kept, False for `InvalidVector`; any other outcome raises."""
    refusal: InvalidVector | None = None
    try:
        vector = decode(data, options=options, num_layers=LAYERS, hidden_size=HIDDEN)
    except InvalidVector as error:
        refusal = error
    if refusal is not None:
        assert 0 < len(str(refusal)) < 1000
        (str(refusal) + (refusal.param or "")).encode()
        return False
    assert all(bool(torch.isfinite(direction).all()) for direction in vector.directions.values())
    assert all(direction.dtype in DTYPES and direction.dim() == 1 for direction in vector.directions.values())
    assert all(0 < norm < float("inf") for norm in vector.norms.values())
    json.dumps(vector.defaults, ensure_ascii=False, allow_nan=False).encode()
    kept = encode_safetensors(vector)
    again = decode(kept, num_layers=LAYERS, hidden_size=vector.hidden_size)
    assert again.revision == vector.revision
    return True


def splice(data: bytearray, chance: random.Random) -> None:
    """One damage that a wire, a disk or an enemy does."""
    place = chance.randrange(len(data))
    kind = chance.randrange(7)
    if kind == 0:
        data[place] ^= 1 << chance.randrange(8)
    elif kind == 1:
        data[place] = chance.randrange(256)
    elif kind == 2:
        data[place] = chance.choice([0, 1, 0x7F, 0x80, 0xFF])
    elif kind == 3:
        number = chance.choice([0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1])
        data[place : place + 8] = number.to_bytes(8, "little")
    elif kind == 4:
        del data[place : place + chance.randrange(1, 9)]
    elif kind == 5:
        data[place:place] = chance.randbytes(chance.randrange(1, 9))
    else:
        start = chance.randrange(len(data))
        data[place : place + 16] = data[start : start + 16]


def mutations(data: bytes, seed: int, count: int) -> Iterator[bytes]:
    chance = random.Random(seed)
    for _ in range(count):
        mutated = bytearray(data)
        for _ in range(chance.choice([1, 1, 1, 2, 4, 16])):
            if mutated:
                splice(mutated, chance)
        yield bytes(mutated)


@pytest.mark.parametrize("file", FILES)
def test_whole_file_holds(file: str) -> None:
    assert holds(*FILES[file])


def unneeded_tail(file: str, data: bytes) -> int:
    """Bytes at the end that a reader can do without: the last tensor's padding in a GGUF."""
    return (-4 * HIDDEN) % 32 if file == "gguf" else 0


@pytest.mark.parametrize("file", FILES)
def test_truncated_file_never_holds(file: str) -> None:
    data, options = FILES[file]
    for length in range(len(data) - unneeded_tail(file, data)):
        assert not holds(data[:length], options), length


def fuzz(file: str, seed: int, count: int) -> None:
    data, options = FILES[file]
    outcomes = {True: 0, False: 0}
    for mutated in mutations(data, seed, count):
        outcomes[holds(mutated, options)] += 1
    assert outcomes[False], "the damage is real"
    assert outcomes[True], "and not all of it at the file's first byte"


@pytest.mark.parametrize("file", FILES)
def test_mutated_file_holds_or_is_refused(file: str) -> None:
    fuzz(file, seed=11, count=450)


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("seed", range(20))
def test_mutated_file_holds_or_is_refused_at_length(file: str, seed: int) -> None:
    fuzz(file, seed=1000 + seed, count=450)


PICKLED = [
    FILES["pt-dict"][0],
    FILES["pt-library"][0],
    saved({"layer": np.int64(1), "v": V.numpy()}),
    saved({1: V.numpy(), 2: V.double().numpy()}),
]


def pickled_mutations(seed: int, count: int) -> Iterator[bytes]:
    """Damage to the pickle alone, in an archive whose checksums are right."""
    chance = random.Random(seed)
    for _ in range(count):
        data = chance.choice(PICKLED)
        buffer = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(buffer, "w") as target:
            for member in source.infolist():
                content = bytearray(source.read(member))
                if member.filename.endswith("data.pkl"):
                    for _ in range(chance.choice([1, 1, 2, 4])):
                        splice(content, chance)
                target.writestr(member.filename, bytes(content))
        yield buffer.getvalue()


def fuzz_pickles(seed: int, count: int) -> None:
    outcomes = [holds(mutated, ImportOptions()) for mutated in pickled_mutations(seed, count)]
    assert set(outcomes) == {True, False}


def test_mutated_pickle_holds_or_is_refused() -> None:
    fuzz_pickles(seed=12, count=600)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_mutated_pickle_holds_or_is_refused_at_length(seed: int) -> None:
    fuzz_pickles(seed=2000 + seed, count=600)


def test_random_bytes_behind_every_magic_are_refused() -> None:
    chance = random.Random(13)
    for magic in (b"", b"GGUF\x03\0\0\0", b"GGUF", b"PK\x03\x04", b"\x80\x02", (40).to_bytes(8, "little") + b"{"):
        for _ in range(100):
            assert not holds(magic + chance.randbytes(chance.randrange(200)), ImportOptions())
