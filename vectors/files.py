"""Load a steering vector from a file, and save one. `vectors.formats` reads and writes the bytes."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from torch import nn

from vectors.durable import write_file
from vectors.errors import InvalidVector
from vectors.formats import ImportOptions, decode, encode
from vectors.formats.autoencoder import read_feature
from vectors.formats.packing import read_file_or_folder
from vectors.sites import find_sites
from vectors.vector import SteeringVector
from vectors.vocabulary import FILE_FORMATS, Convention, FileFormat, parse_layers


def load(
    path: str | PathLike[str],
    model: nn.Module | None = None,
    *,
    num_layers: int | None = None,
    hidden_size: int | None = None,
    layer: int | None = None,
    layers: str | Sequence[int] | None = None,
    row: int | None = None,
    convention: Convention | None = None,
    feature: int | None = None,
    unit_norm: bool = False,
    **defaults: Any,
) -> SteeringVector:
    """The vector in a file or a folder of any format in docs/vectors.md, or a feature of a sparse autoencoder.

    `model` is the transformers model that the vector must fit. Without one, a `.pt` file of rows needs `num_layers`,
    the model's number of blocks; `num_layers` and `hidden_size` are checked if they are given. `layer` is the block of
    a file with one direction, or the only one kept of several, and `layers` are those kept; `row` picks one of several
    alternatives for `layer`; `convention` is how the file counts its layers. With `feature`, `path` is a sparse
    autoencoder, and `layer` and `unit_norm` are as for `vectors.formats.autoencoder.read_feature`. `defaults` are
    fields of `SteeringVector` that override the file's own, such as `default_scale=0.5`. Raises `InvalidVector`,
    `InvalidLayers` and `OSError`, and `SitesNotFound` for a model that cannot be steered.
    """
    asked = None if layers is None else parse_layers(layers)
    if feature is not None:
        content, layer = read_feature(Path(path), feature, layer=layer, unit_norm=unit_norm).content, None
    elif unit_norm:
        raise InvalidVector("unit_norm is for a feature of an autoencoder: give feature", "unit_norm")
    else:
        content = read_file_or_folder(Path(path))
    options = ImportOptions(layer, convention, defaults, asked, row)
    if model is None:
        vector = decode(content, options=options, num_layers=num_layers, hidden_size=hidden_size)
        found = max(vector.layers) + 1 if num_layers is None else num_layers
        vector.fit(found, vector.hidden_size if hidden_size is None else hidden_size, (vector.site,))
        return vector
    if num_layers is not None or hidden_size is not None:
        raise InvalidVector("expected either model or num_layers and hidden_size, got both")
    sites = find_sites(model)
    vector = decode(content, options=options, num_layers=sites.num_layers, hidden_size=sites.hidden_size)
    vector.fit(sites.num_layers, sites.hidden_size, sites.sites)
    return vector


def save(vector: SteeringVector, path: str | PathLike[str], *, format: FileFormat | None = None) -> None:
    """Write `vector` to `path`, as `format` or as the file's suffix says.

    Safetensors keeps everything. GGUF, which llama.cpp reads, keeps only the directions, and only of vectors that are
    added to the residual stream. The whole file is on disk when this returns; a crash never leaves half of it. Raises
    `InvalidVector` for another suffix and for what GGUF cannot hold, and `OSError`.
    """
    target = Path(path)
    asked = target.suffix.removeprefix(".").lower() if format is None else format
    chosen = next((known for known in FILE_FORMATS if known == asked), None)
    if chosen is None:
        raise InvalidVector(f"expected one of {', '.join(FILE_FORMATS)} as format or suffix, got {asked!r}", "format")
    write_file(target, encode(vector, chosen))
