"""A library's folder as one file: a zip of those of its files that describe vectors. It loads no torch.

`folder.py` reads the zip back. The same folder always gives the same bytes.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

from vectors.errors import InvalidVector
from vectors.formats.zips import TENSOR_SUFFIXES

_KEPT = (*TENSOR_SUFFIXES, ".json")
_MAX_BYTES = 1 << 30


def read_file_or_folder(path: Path) -> bytes:
    """The bytes of a file, or a folder's files with tensors or JSON as a zip; its folders are left out.

    Raises `InvalidVector` for a folder without tensors or of more than 1 GiB, and `OSError`.
    """
    if not path.is_dir():
        return path.read_bytes()
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in _KEPT and file.is_file())
    if not any(file.suffix.lower() in TENSOR_SUFFIXES for file in files):
        raise InvalidVector(f"{path} is a folder: expected files of {', '.join(TENSOR_SUFFIXES)} in it, got none")
    num_bytes = sum(file.stat().st_size for file in files)
    if num_bytes > _MAX_BYTES:
        raise InvalidVector(f"{path} has {num_bytes} bytes of tensors and JSON: expected at most {_MAX_BYTES}")
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
        for file in files:
            archive.writestr(zipfile.ZipInfo(file.name), file.read_bytes())
    return packed.getvalue()
