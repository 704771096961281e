"""Zips, NumPy's arrays, `.svec`, `.brainpatch` and folders: what is refused, within bounds, and what it is called."""

from __future__ import annotations

import json
import pickle
import struct
import tracemalloc
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.vectors.formats.containers import (
    FOLDERS,
    brainpatch,
    brainpatch_files,
    npy,
    npz,
    pyvene,
    repsteer,
    rotalabs,
    sha256,
    svec,
    zipped,
)
from tests.vectors.formats.pickles import TENSOR, archive, group, name, number, saved, text
from vectors.errors import InvalidVector
from vectors.files import load
from vectors.formats import ImportOptions, decode
from vectors.formats.npy import read_npy
from vectors.formats.packing import read_file_or_folder
from vectors.formats.zips import ZipMembers, zip_kind
from vectors.vector import SteeringVector

HIDDEN = 4
LAYERS = 3
V = torch.arange(1.0, HIDDEN + 1)


def read(data: bytes, **options: Any) -> SteeringVector:
    return decode(data, options=ImportOptions.from_json(options), num_layers=LAYERS, hidden_size=HIDDEN)


# Zips


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (saved(V), "torch"),
        (archive(TENSOR, compression=zipfile.ZIP_DEFLATED), "torch"),
        (npz({"care_layer1": V}), "npz"),
        (brainpatch([], {"v": V}), "brainpatch"),
        (zipped(repsteer(V)), "folder"),
        (zipped(pyvene(V)), "folder"),
        (zipped(rotalabs(V)), "folder"),
        (zipped({"word/document.xml": b"<x/>"}), "unknown"),
        (zipped({}), "unknown"),
        (b"PK\x03\x04" + bytes(100), "unknown"),
        (npy(V), None),
    ],
)
def test_one_zip_is_one_container(data: bytes, kind: str | None) -> None:
    assert zip_kind(data) == kind


def test_a_bomb_is_refused_by_what_it_declares_before_anything_is_inflated() -> None:
    data = zipped({"a.npy": bytes(65 << 20)}, zipfile.ZIP_DEFLATED)
    assert len(data) < 1 << 17
    tracemalloc.start()
    try:
        with pytest.raises(InvalidVector, match="declares 68157440 bytes; expected at most 67108864"):
            read(data)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def declared(data: bytes, member: str, size: int, crc: int) -> bytes:
    """A zip whose directory gives `member` another size and checksum than it has."""
    start = data.rindex(b"PK\x01\x02", 0, data.rindex(member.encode()))
    changed = data[: start + 16] + struct.pack("<I", crc) + data[start + 20 :]
    return changed[: start + 24] + struct.pack("<I", size) + changed[start + 28 :]


def test_a_bomb_is_refused_by_what_comes_out() -> None:
    content = bytes(32 << 20)
    data = declared(zipped({"a.npy": content}, zipfile.ZIP_DEFLATED), "a.npy", 100, zlib.crc32(content[:100]))
    tracemalloc.start()
    try:
        with pytest.raises(InvalidVector, match="compressed data does not have the declared size"):
            read(data)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    longer = declared(zipped({"a.npy": npy(V)}, zipfile.ZIP_DEFLATED), "a.npy", 4096, 0)
    with pytest.raises(InvalidVector, match="does not have the declared size"):
        read(longer)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_member_must_have_its_checksum(compression: int) -> None:
    content = npy(V)
    data = zipped({"a.npy": content}, compression)
    right = zlib.crc32(content)
    assert ZipMembers(declared(data, "a.npy", len(content), right)).read("a.npy") == content
    with pytest.raises(InvalidVector, match=r"the checksum of 'a\.npy' is wrong"):
        ZipMembers(declared(data, "a.npy", len(content), right ^ 1)).read("a.npy")


def test_a_zip_in_a_zip_is_not_inflated_a_second_time() -> None:
    inner = archive(TENSOR, {"0": bytes(1 << 20)}, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(
        InvalidVector, match=r"^zip of a folder: v\.pt: the archive declares \d+ bytes; expected at most"
    ):
        read(zipped({"v.pt": inner}), layer=1)
    assert read(zipped({"v.pt": archive(TENSOR)}), layer=1).layers == (1,)


def test_other_compressions_are_refused() -> None:
    with pytest.raises(InvalidVector, match="compressed in another way than deflate"):
        read(zipped({"a.npy": npy(V)}, zipfile.ZIP_BZIP2))
    data = zipped({"a.npy": npy(V)})
    start = data.rindex(b"PK\x01\x02")
    with pytest.raises(InvalidVector, match="encrypted"):
        read(data[: start + 8] + b"\1\0" + data[start + 10 :])


def test_members_are_read_as_zipfile_reads_them() -> None:
    files = {"a": b"", "b/c": b"x" * 1000, "ä": bytes(range(256))}
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        members = ZipMembers(zipped(files, compression))
        assert {name: members.read(name) for name in members.names} == files


# What a file is called


@pytest.mark.parametrize(
    ("data", "called"),
    [
        (archive(name("os system") + group(text("true")) + b"R"), "PyTorch .pt: the pickle refers to 'os.system'"),
        (saved(V)[:-30], "PyTorch .pt: the archive is damaged"),
        (pickle.dumps([1.0]), "bare pickle: a pickle may run code"),
        (npz({"a_layer1": V, "b_layer1": V}), "NumPy .npz: the file has several directions a layer: a, b"),
        (npy(V), "NumPy .npy: the file has one direction and does not say its layer"),
        (svec({}), "JSON (.svec): expected directions"),
        (brainpatch([], {"v": V}), "brainpatch: manifest.json: expected interventions"),
        (zipped({"a.pt": b""}), "zip of a folder: a.pt: expected an archive of torch.save"),
        (zipped({"a.txt": b""}), "zip: expected an archive of torch.save"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 0), "GGUF (architecture none): the GGUF file has no directions"),
        (b"GGUF" + bytes(3), "GGUF: the GGUF file is truncated"),
        ((2).to_bytes(8, "little") + b"{}", "safetensors: the file has no tensors"),
    ],
)
def test_every_error_begins_with_the_container(data: bytes, called: str) -> None:
    answers = set()
    for _ in range(2):
        with pytest.raises(InvalidVector) as caught:
            read(data)
        answers.add(str(caught.value))
    assert len(answers) == 1
    assert answers.pop().startswith(called)


# NumPy


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("fortran", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_arrays_are_read_as_numpy_reads_them(tmp_path: Path, dtype: torch.dtype, fortran: bool, order: str) -> None:
    values = torch.arange(1, 13).reshape(3, 4).to(dtype)
    data = npy(values, order=order, fortran=fortran)
    (tmp_path / "a.npy").write_bytes(data)
    theirs = np.load(tmp_path / "a.npy")
    assert read_npy(data).dtype is dtype
    assert np.array_equal(read_npy(data).numpy(), theirs)


@pytest.mark.parametrize(
    ("header", "says"),
    [
        ("{'descr': '|O', 'fortran_order': False, 'shape': (4,), }", "an array of objects holds a pickle"),
        ("{'descr': '<c8', 'fortran_order': False, 'shape': (2,), }", "dtype: expected one of .*, got '<c8'"),
        ("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (4,), }", "expected the header of an array"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (__import__('os'),), }", "expected the header"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (5,), }", "does not have the bytes it needs"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (999999999999, 999999999999), }", "the bytes it needs"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (0, 999999999999), }", "the bytes it needs"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (1, 1, 1, 1, 1, 1, 1, 1, 4), }", "at most 8 sizes"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (" + "1" * 5000 + "), }", "expected the header"),
        ("(" * 5000, "expected the header"),
        (" " * 20_000, "too long"),
    ],
)
def test_what_a_header_may_not_say(header: str, says: str) -> None:
    with pytest.raises(InvalidVector, match=says):
        read(npy(V, header=header), layer=1)


def array_of(content: bytes, code: bytes = text("f4"), size: int = 4, memo: bytes = b"") -> bytes:
    """The pickle of an ndarray of protocol 2, whose content is `content`."""
    dtype = name("numpy dtype") + group(code, b"\x89", b"\x88") + b"R"
    order = group(number(3), text("<"), b"N", b"N", b"N", number(-1), number(-1), number(0)) + b"b"
    empty = (
        name("numpy._core.multiarray _reconstruct") + group(name("numpy ndarray"), group(number(0)), text("b")) + b"R"
    )
    return empty + memo + group(number(1), group(number(size)), dtype + order, b"\x89", content) + b"b"


RAW = name("_codecs encode") + group(text(V.numpy().tobytes().decode("latin-1")), text("latin1")) + b"R"


def test_an_array_in_a_pickle_is_read() -> None:
    assert read(archive(array_of(RAW)), layer=1).directions[1].tolist() == V.tolist()
    stack = np.asfortranarray(np.arange(12.0).reshape(3, 4))
    assert read(saved({"v": stack}), layer=1, row=2).directions[1].tolist() == [8, 9, 10, 11]
    assert read(saved({np.int64(2): V.numpy()})).layers == (2,)


@pytest.mark.parametrize(
    ("operations", "says"),
    [
        (array_of(RAW, size=5), "does not have the bytes it needs"),
        (array_of(RAW, code=text("O8")), "an array of objects"),
        (array_of(RAW, code=text("V4")), "an array's dtype: expected one of"),
        (array_of(text("abc")), "damaged"),
        (array_of(RAW, size=-1), "at most 8 sizes"),
        (array_of(RAW) + group(number(1)) + b"b", "damaged"),
        (name("numpy._core.multiarray _reconstruct") + group(name("numpy ndarray"), number(0)) + b"R", "does not end"),
        (
            name("numpy._core.multiarray _reconstruct") + group(name("numpy dtype"), number(0)) + b"R",
            "calls a function",
        ),
        (name("numpy ndarray") + group(number(4)) + b"R", "calls a function"),
        (name("numpy.core.multiarray fromfile") + group(text("/etc/passwd")) + b"R", "refers to"),
        (
            b"]q\x05(" + RAW.replace(b"latin1R", b"latin1R") + b"q\x06" + array_of(b"h\x06") * 60 + b"e",
            "together larger than the pickle|got a list|damaged",
        ),
    ],
)
def test_an_array_that_lies_is_refused(operations: bytes, says: str) -> None:
    with pytest.raises(InvalidVector, match=says):
        read(archive(operations), layer=1)


def test_one_text_is_not_the_content_of_many_arrays() -> None:
    """A thousand arrays over one MiB of text are not a GiB."""
    content = name("_codecs encode") + group(text("a" * (1 << 20)), text("latin1")) + b"R"
    arrays = array_of(content + b"q\x06", size=1 << 18) + array_of(b"h\x06", size=1 << 18) * 999
    tracemalloc.start()
    try:
        with pytest.raises(InvalidVector, match="together larger than the pickle"):
            read(archive(b"](" + arrays + b"e"), layer=1)
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()


# .svec


def test_svec_leaves_out_what_the_library_cannot_mean() -> None:
    whole = {layer: V * (layer + 1) for layer in range(LAYERS)}
    vector = read(svec(whole))
    assert {layer: float(direction[0]) for layer, direction in vector.directions.items()} == {0: 2}
    noted = vector.metadata["import"]
    assert noted["key_0"].startswith("left out")
    assert noted["left_out"].startswith("layer 1, the last one")
    assert (vector.positions, noted["model_type"]) == ("all", "llama")
    assert read(svec(whole), layers=[0, 1]).layers == (0, 1)
    assert read(svec(whole), convention="as_derived").layers == (0, 1)
    assert read(svec({1: V})).layers == (0,)
    spaced = json.dumps(json.loads(svec(whole)), indent=2).encode()
    assert read(b"\n  " + spaced) == vector


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (svec({0: V}), "key 0 is added to the input of block 0, which is no site: send convention=as_derived"),
        (svec({1: V[:3]}), r"directions.1: expected 4 numbers .*, got 3"),
        (svec({}, directions={"a": [1.0]}), "expected layers as keys, got 'a'"),
        (svec({}, directions={"01": [1.0]}), "expected layers as keys, got '01'"),
        (svec({}, directions={"1": "text"}), "directions.1: expected a list of numbers"),
        (svec({}, directions={"1": [True] * 4}), "directions.1: expected a list of numbers"),
        (svec({}, directions={"1": [10**400] * 4}), "directions.1: a number is too large"),
        (svec({}, directions={"1": [1e300] * 4}), "contains infinity"),
        (svec({}, directions={"1": [float("nan")] * 4}), "contains NaN"),
        (svec({}, directions=[V.tolist()]), "expected directions, an object of lists"),
        (b'{"model_type": "llama"}', "expected directions, .*, got an object of model_type"),
        (b'{"abcd":{"0": [1]}}', r"^JSON \(.svec\): expected directions"),
        (b'{"directions":' + b"[" * 15_000, "is not JSON"),
        (b'{"directions":' + b"[" * 25_000, "more than 20000 lists and objects"),
        (svec({1: V})[:-20], "is not JSON; is it truncated"),
    ],
)
def test_a_svec_that_cannot_be_read_is_refused(data: bytes, says: str) -> None:
    with pytest.raises(InvalidVector, match=says):
        read(data)


def test_svec_has_two_conventions() -> None:
    with pytest.raises(InvalidVector, match="expected one of as_applied, as_derived, got one_based"):
        read(svec({1: V}), convention="one_based")


# .brainpatch


@pytest.mark.parametrize(("site", "positions"), [("all", "all"), ("prompt", "prompt"), ("continuation", "response")])
def test_a_patch_says_where_and_how_strongly(site: str, positions: str) -> None:
    entry = {"layer": 1, "vector": "v", "coefficient": 2.0, "site": site}
    vector = read(brainpatch([entry], {"v": V}, default_strength=0.25, description="calm"))
    assert vector.directions[1].tolist() == (V * 2).tolist()
    assert (vector.positions, vector.default_scale, vector.description) == (positions, 0.25, "calm")
    assert vector.model == "tiny/llama"
    noted = vector.metadata["import"]["positions"]
    assert ("one before the patch's" in noted) == (site == "continuation")


@pytest.mark.parametrize(
    ("entries", "more", "says"),
    [
        ([{"layer": 1, "vector": "v"}], {"schedule": {"0": 1.0}}, "strength follows a schedule"),
        ([{"layer": 1, "vector": "v"}], {"format_version": "2.0"}, "format_version: expected 1.0, got '2.0'"),
        (
            [{"layer": 1, "vector": "v", "hook": "mlp"}],
            {},
            r"interventions\[0\].hook: expected residual_post, got 'mlp'",
        ),
        ([{"layer": 1, "vector": "v", "site": "last"}], {}, "site: expected one of all, prompt, continuation"),
        (
            [{"layer": 1, "vector": "v"}, {"layer": 2, "vector": "v", "site": "prompt"}],
            {},
            "at one site, got all, prompt",
        ),
        ([{"layer": -1, "vector": "v"}], {}, "layer: expected 0 to 4095, got -1"),
        ([{"layer": True, "vector": "v"}], {}, "layer: expected 0 to 4095, got True"),
        ([{"layer": 1, "vector": "w"}], {}, "'w' is not in vectors.safetensors"),
        ([{"layer": 1, "vector": "v", "coefficient": float("nan")}], {}, "expected a number up to 1024, got nan"),
        ([{"layer": 1, "vector": "v", "coefficient": "2"}], {}, "expected a number up to 1024, got '2'"),
        ([{"layer": 1, "vector": "v"}], {"default_strength": 1e9}, "default_strength: expected a number up to 1024"),
        ([{"layer": 1, "vector": "m"}], {}, r"vector 'm': expected shape \[4\], got \[2, 4\]"),
        (["x"], {}, "expected an object"),
        ([], {}, "expected interventions"),
    ],
)
def test_a_patch_that_cannot_be_honoured_is_refused(entries: list[Any], more: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidVector, match=f"^brainpatch: .*{says}"):
        read(brainpatch(entries, {"v": V, "m": torch.ones(2, HIDDEN)}, **more))


def test_a_patch_without_right_checksums_is_refused() -> None:
    files = brainpatch_files([{"layer": 1, "vector": "v"}], {"v": V})
    for member in ("manifest.json", "vectors.safetensors", "README.md"):
        with pytest.raises(InvalidVector, match=f"{member}: its content does not have the SHA-256"):
            read(zipped(files | {member: files[member] + b" "}))
    with pytest.raises(InvalidVector, match=r"extra\.txt: its content"):
        read(zipped(files | {"extra.txt": b""}))
    del files["checksums.json"]
    with pytest.raises(InvalidVector, match=r"has no checksums\.json"):
        read(zipped(files))


def test_one_vector_at_every_layer_is_bounded() -> None:
    entries = [{"layer": layer, "vector": "v", "coefficient": 2.0} for layer in range(4096)]
    with pytest.raises(InvalidVector, match="more than 16777216 numbers"):
        decode(brainpatch(entries, {"v": torch.ones(1 << 16)}))


# Folders


ODD: list[Any] = [
    None,
    True,
    -1,
    10**400,
    1e308,
    "",
    "\ud800",
    "x" * 20_000,
    [],
    {},
    [[[]]],
    {"a": {}},
    ["1"],
    [1.0] * 4,
]


def with_odd(value: Any, odd: Any) -> Iterator[Any]:
    """`value` with each of its places in turn replaced by `odd`."""
    yield odd
    if isinstance(value, dict):
        for key in value:
            for changed in with_odd(value[key], odd):
                yield value | {key: changed}
    elif isinstance(value, list):
        for index, entry in enumerate(value):
            for changed in with_odd(entry, odd):
                yield [*value[:index], changed, *value[index + 1 :]]


@pytest.mark.parametrize("odd", ODD, ids=range(len(ODD)))
def test_any_value_in_a_description_is_read_or_refused(odd: Any) -> None:
    patch = brainpatch_files([{"layer": 1, "vector": "v", "coefficient": 0.5}], {"v": V})
    described = {
        "manifest.json": {name: file for name, file in repsteer(V).items() if name != "checksums.json"},
        "config.json": pyvene(V),
        "layer_1.json": rotalabs(V),
    }
    for file, files in described.items():
        for changed in with_odd(json.loads(files[file]), odd):
            outcome(zipped(files | {file: json.dumps(changed).encode()}))
    for changed in with_odd(json.loads(patch["manifest.json"]), odd):
        files = patch | {"manifest.json": json.dumps(changed).encode()}
        sums = {member: sha256(content) for member, content in files.items() if member != "checksums.json"}
        outcome(zipped(files | {"checksums.json": json.dumps(sums).encode()}))
    for changed in with_odd(json.loads(svec({1: V})), odd):
        outcome(json.dumps(changed).encode())


def outcome(data: bytes) -> None:
    """A vector, or `InvalidVector` that can be sent; anything else raises."""
    said = "read"
    try:
        read(data)
    except InvalidVector as error:
        said = str(error)
    assert 0 < len(said.encode()) < 1000


@pytest.mark.parametrize("library", FOLDERS)
def test_a_folder_on_disk_is_the_zip_of_its_files(tmp_path: Path, library: str) -> None:
    files = {
        file.rpartition("/")[2]: content for file, content in FOLDERS[library][0](V).items() if "MACOSX" not in file
    }
    for file, content in files.items():
        if file:
            (tmp_path / file).write_bytes(content)
    (tmp_path / "README.md").write_text("# calm")
    (tmp_path / "cache").mkdir()
    vector = load(tmp_path, num_layers=LAYERS, hidden_size=HIDDEN)
    assert vector == read(zipped(FOLDERS[library][0](V)))
    assert read_file_or_folder(tmp_path) == read_file_or_folder(tmp_path)
    assert vector.model in (None, "tiny/llama")


def test_a_folder_without_tensors_is_named(tmp_path: Path) -> None:
    (tmp_path / "notes.json").write_text("{}")
    with pytest.raises(InvalidVector, match=r"is a folder: expected files of \.safetensors, .* in it, got none"):
        load(tmp_path)


def test_a_file_a_layer() -> None:
    domainsteer = {f"direction_layer_{layer}.npy": npy(V * (layer + 1)) for layer in range(LAYERS)}
    described = {"meta.json": json.dumps({"model_name": "tiny/llama", "layers": [0, 1, 2]}).encode()}
    vector = read(zipped(domainsteer | described))
    assert {layer: float(direction[0]) for layer, direction in vector.directions.items()} == {0: 1, 1: 2, 2: 3}
    assert (vector.default_layers, vector.model) == ("none", "tiny/llama")
    assert read(zipped(domainsteer | described), layer=1).default_layers == "all"
    vectors = read(zipped(rotalabs(V, 1) | rotalabs(V * 2, 2)))
    assert (vectors.layers, vectors.default_layers, vectors.model) == ((1, 2), "all", "tiny/llama")


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (repsteer(V, artifact_type="probe"), "artifact_type: expected one of direction, sae_feature, got 'probe'"),
        (repsteer(V, "head_result"), "expected one of resid_post, .*, got 'head_result'"),
        (repsteer(V, site={"component": "resid_post", "layer": 1, "unit": 3}), "site.unit: expected None, got 3"),
        (repsteer(V, site={"component": "resid_post", "layer": 1, "stream": "vision"}), "stream: expected 'language'"),
        (repsteer(V) | {"tensors.safetensors": repsteer(V * 2)["tensors.safetensors"]}, "the SHA-256"),
        (repsteer(V) | {"a.pt": saved(V)}, "expected tensors.safetensors alone, got tensors.safetensors, a.pt"),
        (repsteer(V, name="other"), "expected the tensor direction"),
        (pyvene(V, kind="pyreft.interventions.LoreftIntervention"), "for all, got LoreftIntervention"),
        (pyvene(V, kind="pyvene.models.interventions.VanillaIntervention"), "for all, got VanillaIntervention"),
        (pyvene(V, "head_query_output"), "with one of block_output, .*head_query_output"),
        (pyvene(V) | {"config.json": b"{}"}, "intervention_types: .* got none"),
        (
            {**pyvene(V), "intkey_layer_1_comp_block_output_unit_pos_nunit_1#0.bin": saved({"rotate_layer": V})},
            "expected source_representation, got rotate_layer",
        ),
        (
            {
                **pyvene(V),
                "intkey_layer_1_comp_block_output_unit_pos_nunit_1#0.bin": saved(
                    {"source_representation": V, "interchange_dim": torch.tensor(2)}
                ),
            },
            "on the whole width",
        ),
        ({name: content for name, content in pyvene(V).items() if name != "config.json"}, "expected pyvene's config"),
        ({"a.pt": saved(V), "b.pt": saved(V)}, "2 files with tensors, and neither the name of 'a.pt' nor JSON"),
        (rotalabs(V, 1) | {"layer_1.json": b'{"layer_index": 2}'}, "says layer 2, but the file is named 'layer_1.pt'"),
        ({"a.pt": saved(V), "a.json": b"[]"}, "a.json: expected a JSON object, got a list"),
        ({"a.pt": saved(V), "tokenizer.json": b"{}"}, r"expected the description of a.pt in a\.json or metadata\.json"),
        ({"x/a.pt": saved(V), "b.pt": saved(V)}, "expected the files of one folder, got 'x/a.pt'"),
        ({"a.bin": pickle.dumps([1.0]), "a.json": b'{"layer": 1}'}, "a.bin: expected an archive of torch.save"),
        ({"layer_1.pt": saved([V, V])}, "layer_1.pt: expected one tensor, got a list"),
        (
            {
                "layer_1.pt": saved(V),
                "layer_2.pt": saved(V),
                "layer_1.json": b'{"alpha": 1}',
                "layer_2.json": b'{"alpha": 2}',
            },
            "has another strength, operation or model",
        ),
    ],
)
def test_a_folder_that_cannot_be_honoured_is_refused(files: dict[str, bytes], says: str) -> None:
    with pytest.raises(InvalidVector, match=f"^zip of a folder: .*{says}"):
        read(zipped(files))


def test_a_tensor_that_repeats_its_numbers_is_not_multiplied() -> None:
    state = {"source_representation": torch.ones(1).expand(1 << 40)}
    files = {**pyvene(V), "intkey_layer_1_comp_block_output_unit_pos_nunit_1#0.bin": saved(state)}
    with pytest.raises(InvalidVector, match="larger than the file's data"):
        read(zipped(files))
