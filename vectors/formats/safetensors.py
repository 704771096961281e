"""The canonical format: safetensors with one tensor a direction, named `{site}.{layer}`, shape `[hidden]`.

A vector that reads along other directions than it writes also has `{site}.{layer}.read`, and `{site}.{layer}.bias` of
shape `[rank]`; then both may have the shape `[rank, hidden]`. The metadata key `steering_vector` holds the vector's
defaults as JSON; a bare file of tensors is enough. Files are byte-stable: the same vector always gives the same file.
Layer L is the output of block L.
"""

from __future__ import annotations

import io
import json
import re
import struct
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from vectors.errors import InvalidVector
from vectors.formats.codec import Codec
from vectors.formats.headers import DEFAULTS_KEY, METADATA, read_safetensors_header
from vectors.formats.interpretation import Content, interpret
from vectors.formats.making import make_vector
from vectors.formats.options import OVERRIDES, ImportOptions
from vectors.vector import SteeringVector, canonical_json
from vectors.vocabulary import SITES

_TENSOR_NAME = re.compile(r"([a-z_]{1,40})\.(0|[1-9][0-9]{0,3})(?:\.(read|bias))?")
_DERIVED = frozenset(
    {"object", "id", "name", "revision", "created_at", "bytes", "norms", "rank", "has_read_directions"}
)
"""Fields of the API's vector object that follow from the content or the registry; a file may carry them along."""


def is_safetensors(data: bytes) -> bool:
    """True when the bytes begin like a safetensors file."""
    if len(data) < 10:
        return False
    (length,) = struct.unpack_from("<Q", data)
    return data[8:9] == b"{" and bool(length > 0)


def encode_safetensors(vector: SteeringVector) -> bytes:
    """The canonical file; `decode` of it has the same revision."""
    kinds = (("", vector.directions), (".read", vector.reads), (".bias", vector.biases))
    tensors = {f"{vector.site}.{layer}{kind}": tensor for kind, own in kinds for layer, tensor in own.items()}
    encoded: bytes = safetensors.torch.save(tensors, metadata={DEFAULTS_KEY: canonical_json(vector.defaults)})
    return encoded


def decode_safetensors(data: bytes, options: ImportOptions) -> SteeringVector:
    """Read the canonical format. Raises `InvalidVector`."""
    options.choose_convention()
    options.refuse_row("the tensors' names give their layers")
    header = _read_header(data)
    defaults = _read_defaults(header)
    tensors = read_tensors(data)
    found: dict[str | None, dict[int, Tensor]] = {None: {}, "read": {}, "bias": {}}
    sites = set()
    for name, tensor in tensors.items():
        match = _TENSOR_NAME.fullmatch(name)
        if match is None or match[1] not in SITES:
            raise InvalidVector(
                f"expected tensors named {{site}}.{{layer}}, or that with .read or .bias, got {name[:80]!r}; sites are "
                f"{', '.join(SITES)}",
                name[:80],
            )
        sites.add(match[1])
        found[match[3]][int(match[2])] = tensor
    directions, reads, biases = found.values()
    if len(sites) > 1:
        raise InvalidVector(f"expected directions at one site, got {', '.join(sorted(sites))}", "site")
    if not directions:
        raise InvalidVector("the file has no directions" if tensors else "the file has no tensors")
    (site,) = sites
    if defaults.setdefault("site", site) != site:
        raise InvalidVector(f"steering_vector has site {defaults['site']!r:.60}, but the tensors have {site}", "site")
    shape = next(iter(directions.values())).shape
    for name, actual in (("layers", sorted(directions)), ("hidden_size", shape[-1] if shape else None)):
        if defaults.pop(name, actual) != actual:
            raise InvalidVector(f"steering_vector has other {name} than the tensors", f"{DEFAULTS_KEY}.{name}")
    if options.overrides.get("site", site) != site:
        raise InvalidVector(f"the upload has another site than the tensors' names ({site})", "site")
    if options.asked is not None:
        return make_vector(directions, options, {"format": "safetensors"}, defaults, reads=reads, biases=biases)
    return SteeringVector(directions, reads, biases, **(defaults | dict(options.overrides)))


def decode_any_safetensors(
    data: bytes, options: ImportOptions, num_layers: int | None, hidden_size: int | None
) -> SteeringVector:
    """Read the canonical format, or the tensors of another library. Raises `InvalidVector`."""
    if is_canonical(data):
        return decode_safetensors(data, options)
    content = Content("safetensors", read_tensors(data), read_metadata(data))
    return interpret(content, options, num_layers, hidden_size)


def is_canonical(data: bytes) -> bool:
    """True for a file with our metadata or our names, or with nothing. Raises `InvalidVector` for a damaged header."""
    header = _read_header(data)
    metadata = header.get(METADATA, {})
    names = [name for name in header if name != METADATA]
    sites = [match[1] for name in names if (match := _TENSOR_NAME.fullmatch(name))]
    return (
        not names or any(site in SITES for site in sites) or not isinstance(metadata, dict) or DEFAULTS_KEY in metadata
    )


def read_metadata(data: bytes) -> dict[str, Any]:
    """The file's own metadata, text by name."""
    metadata = _read_header(data).get(METADATA, {})
    return metadata if isinstance(metadata, dict) else {}


def read_tensors(data: bytes) -> dict[str, Tensor]:
    """The tensors of a file by name. Raises `InvalidVector`."""
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load(data)
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError, OverflowError) as error:
        raise InvalidVector(f"the safetensors file is damaged: {str(error)[:200]}") from None
    return tensors


def _read_header(data: bytes) -> dict[str, Any]:
    header, _ = read_safetensors_header(io.BytesIO(data))
    return header


def _read_defaults(header: dict[str, Any]) -> dict[str, Any]:
    """The vector's fields under the metadata key, checked by name; values are checked by SteeringVector."""
    metadata = header.get(METADATA, {})
    text = metadata.get(DEFAULTS_KEY, "{}") if isinstance(metadata, dict) else None
    try:
        defaults = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        defaults = None
    if not isinstance(defaults, dict):
        raise InvalidVector(f"the metadata key {DEFAULTS_KEY} does not hold a JSON object", DEFAULTS_KEY)
    for name in defaults:
        if name not in OVERRIDES and name not in _DERIVED and name not in ("layers", "hidden_size"):
            raise InvalidVector(
                f"{DEFAULTS_KEY} has an unknown field: expected one of {', '.join(OVERRIDES)}, got {name[:60]!r}",
                f"{DEFAULTS_KEY}.{name[:60]}",
            )
    return {name: value for name, value in defaults.items() if value is not None and name not in _DERIVED}


CODEC = Codec(is_safetensors, decode_any_safetensors, lambda data: "safetensors", encode_safetensors)
