"""Bytes <-> SteeringVector. The content tells the format, never the name; no file can run code.

`FORMATS` declares each format. Its module is loaded when a file is read or written, so help texts need no torch.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vectors.errors import InvalidVector, UnknownFormat
from vectors.formats.codec import Codec
from vectors.formats.options import ImportOptions
from vectors.vocabulary import DEFAULT_CONVENTION, DEFAULT_FILE_FORMAT, FileFormat

if TYPE_CHECKING:
    from vectors.vector import SteeringVector

__all__ = ["FORMATS", "Format", "ImportOptions", "Layout", "decode", "encode"]


@dataclass(frozen=True, slots=True)
class Layout:
    """One layout of a file format, as the documents show it: its name, its content, and how it counts layers."""

    name: str
    content: str
    layers: str


@dataclass(frozen=True, slots=True)
class Format:
    """A file format. `name` is its extension, and its name on the wire; `title` is its name in messages and help.

    `module` holds its functions, a `Codec` named `CODEC`.
    """

    name: str
    title: str
    module: str
    layouts: tuple[Layout, ...]

    @property
    def codec(self) -> Codec:
        """Its functions; loads torch."""
        codec: Codec = importlib.import_module(self.module).CODEC
        return codec


FORMATS = (
    Format(
        "gguf",
        "GGUF control vector",
        "vectors.formats.gguf",
        (
            Layout(
                "GGUF control vector (repeng, llama.cpp)",
                "`direction.{N}`, f32, f16, bf16 or f64, of any architecture; a site or operation that the file names "
                "is honoured or refused; the last of `direction.1 …` is left out unless `layers` names it",
                f"`{DEFAULT_CONVENTION}` (default): block N; `as_derived`: block N−1, where llama.cpp's generator read "
                "it; `one_based`: block N−1, blocks counted from 1",
            ),
        ),
    ),
    Format(
        "svec",
        "IBM .svec",
        "vectors.formats.svec",
        (
            Layout(
                "`.svec` (IBM activation-steering)",
                "JSON with `directions`, a list of numbers a layer; key 0 is left out unless `as_derived`, the last "
                "one unless `layers` names it",
                "`as_applied` (default): key L is block L−1, where the library adds it; `as_derived`: block L, where "
                "it was read",
            ),
        ),
    ),
    Format(
        "safetensors",
        "safetensors",
        "vectors.formats.safetensors",
        (
            Layout(
                "safetensors (canonical)",
                "one tensor per direction, named `{site}.{layer}`, shape `[hidden]`, float32, float16 or bfloat16; "
                "optional [read directions and biases](steering.md#vectors-with-read-directions), named "
                "`{site}.{layer}.read` and `{site}.{layer}.bias`; optional metadata key `steering_vector` (JSON of the "
                "defaults)",
                "layer L is block L",
            ),
            Layout(
                "safetensors of other libraries",
                "names with layers (`layer_{L}`, `layers.{L}`, `model.layers.{L}`, `direction.{L}`, `{name}_layer{L}`, "
                "`blocks.{L}.hook_resid_post`, `_resid_pre`, `_mlp_out` or `_attn_out`), or one tensor",
                "layer L is block L, its input block L−1; one tensor: in the file's metadata or given with the upload",
            ),
        ),
    ),
    Format(
        "pt",
        "PyTorch .pt",
        "vectors.formats.pytorch",
        (
            Layout("`.pt`, `[hidden]` (CAA, EasyEdit)", "one direction", 'given with the upload: `{"layer": 12}`'),
            Layout(
                "`.pt`, `[layers, hidden]` (hidden-directions)",
                "one row per block; rows of zeros are layers without a direction; the last row is left out and "
                "requests must name layers, unless `layer` or `layers` is given with the upload",
                "layer L is block L",
            ),
            Layout(
                "`.pt`, `[layers + 1, hidden]` (persona_vectors)",
                "row 0 is the embeddings; otherwise the same",
                "row L + 1 is block L",
            ),
            Layout("`.pt`, `[K, hidden]`", "alternatives for one layer", "give `layer` and `row` with the upload"),
            Layout("`.pt`, `{layer: tensor}`", "keys as in safetensors of other libraries", "layer L is block L"),
            Layout(
                "`.pt`, one tensor under a name",
                "beside a layer, a coefficient, a model or a hook, if the file has them",
                "in the file, or given with the upload",
            ),
            Layout(
                "`.pt` of the steering-vectors library",
                '`{"layer_activations": {layer: tensor}, "layer_type": …}`',
                "layer L is block L",
            ),
        ),
    ),
    Format(
        "npy",
        "NumPy .npy or .npz",
        "vectors.formats.npy",
        (
            Layout(
                "`.npy`, `.npz` (deepsteer)",
                "an array as `.pt` has tensors: a direction, a stack or alternatives; or arrays by name, as in "
                "safetensors of other libraries; never objects",
                "as for `.pt` and those names",
            ),
        ),
    ),
    Format(
        "brainpatch",
        ".brainpatch",
        "vectors.formats.brainpatch",
        (
            Layout(
                "`.brainpatch`",
                "checksums are checked, coefficients multiplied in, interventions at one layer added up; a schedule is "
                "refused",
                "layer L is block L",
            ),
        ),
    ),
    Format(
        "folder",
        "zip of a library's folder",
        "vectors.formats.folder",
        (
            Layout(
                "folder of repsteer",
                "`manifest.json`, `tensors.safetensors`: a direction or a feature; checksums are checked",
                "layer L at `resid_post` is block L, at `resid_pre` block L−1",
            ),
            Layout(
                "folder of pyvene or pyreft",
                "`config.json`, `intkey_….bin` with a constant source; additions and subtractions",
                "`block_output` and `mlp_output` L are block L, `block_input` block L−1",
            ),
            Layout(
                "folder with one file (persona-vectors, rotalabs)",
                "one file of tensors, described by JSON of the same name or `metadata.json`",
                "layer L is block L",
            ),
            Layout(
                "folder with a file a layer (domainsteer, rotalabs)",
                "`direction_layer_{L}.npy`, `layer_{L}.pt`, …",
                "layer L is block L",
            ),
        ),
    ),
)
"""Every format, in the order in which a file is tried: a GGUF of 123 tensors begins like a safetensors file, so does
JSON whose first name has four letters, and a safetensors file with a header of 640 bytes begins like a pickle.
"""

_NO_OPTIONS = ImportOptions()


def decode(
    data: bytes,
    *,
    options: ImportOptions = _NO_OPTIONS,
    num_layers: int | None = None,
    hidden_size: int | None = None,
) -> SteeringVector:
    """Read a vector for a model of `num_layers` blocks and width `hidden_size` from a file's bytes.

    Only a `.pt` file with a stack of rows needs these numbers, to tell what the rows mean; pass None if they are
    unknown. `SteeringVector.fit` checks whether the vector fits the model. Raises `InvalidVector` (`UnknownFormat` for
    bytes in no known format).
    """
    if not data:
        raise InvalidVector("the file is empty")
    for format in FORMATS:
        codec = format.codec
        if codec.recognises(data):
            try:
                return codec.decode(data, options, num_layers, hidden_size)
            except InvalidVector as error:
                raise InvalidVector(f"{codec.container(data)}: {error}", error.param) from None
    raise UnknownFormat(
        f"unknown file format: expected one of {format_titles()}; the canonical one is {DEFAULT_FILE_FORMAT} with "
        "tensors named residual.{layer}"
    )


def encode(vector: SteeringVector, format: FileFormat = DEFAULT_FILE_FORMAT) -> bytes:
    """A vector as a file. Raises `InvalidVector` for what the format cannot hold."""
    (codec,) = (other.codec for other in FORMATS if other.name == format)
    assert codec.encode is not None, f"{format} is only read"
    return codec.encode(vector)


def format_titles() -> str:
    """The formats by their titles, as messages and help list them."""
    return ", ".join(format.title for format in FORMATS)


def formats_markdown() -> str:
    """The table in docs/vectors.md."""
    rows = ["| format | layout | layers |", "|---|---|---|"]
    rows += [
        f"| {layout.name} | {layout.content} | {layout.layers} |" for format in FORMATS for layout in format.layouts
    ]
    return "\n".join(rows) + "\n"
