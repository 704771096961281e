"""Compiles the kernels for the processor at hand, once: the result is kept in the user's cache folder.

The file's name has a hash of all that it depends on, so that a changed source, compiler or processor compiles anew.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

_log = logging.getLogger(__name__)

SOURCES = tuple(Path(__file__).with_name(name) for name in ("kernels.c", "blocks.c", "steering.c"))
_HEADER = Path(__file__).with_name("kernels.h")
COMPILERS = ("cc", "gcc", "clang")
"""Names of C compilers on the path, the preferred first."""

_FLAGS = ("-O3", "-march=native", "-ffp-contract=fast", "-fopenmp", "-fPIC", "-shared")
_MOST_SECONDS = 120
_CPU_INFO = Path("/proc/cpuinfo")


def built_library() -> Path | None:
    """The compiled library; None, with the reason in the log, where it cannot be compiled."""
    compiler = find_compiler()
    if compiler is None:
        _log.info("no C compiler was found, so PyTorch's own kernels are used")
        return None
    try:
        folder = _cache_folder()
        library = folder / f"kernels-{_key(compiler)}.so"
        if not library.exists():
            _compile(compiler, library)
    except (OSError, subprocess.SubprocessError) as error:
        output = getattr(error, "stderr", None)
        reason = output.strip().splitlines()[0] if isinstance(output, str) and output.strip() else str(error)
        _log.warning("the kernels cannot be compiled, so PyTorch's own are used: %s", reason)
        return None
    return library


def find_compiler() -> str | None:
    """The path of a C compiler; None if there is none."""
    return next((found for name in COMPILERS if (found := shutil.which(name)) is not None), None)


def _cache_folder() -> Path:
    """A folder that only this user can write to; a new temporary one if the cache folder is not such."""
    try:
        folder = Path.home() / ".cache" / "tiller" / "kernels"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
        if found.st_uid == os.geteuid() and not found.st_mode & 0o022 and os.access(folder, os.W_OK):
            return folder
    except (OSError, RuntimeError):
        pass  # no home, or one that cannot be written to
    return Path(tempfile.mkdtemp(prefix="tiller-kernels-"))


def _key(compiler: str) -> str:
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, timeout=_MOST_SECONDS, check=True)
    sources = [path.read_text() for path in (_HEADER, *SOURCES)]
    parts = (*sources, compiler, version.stdout, *_FLAGS, platform.machine(), _processor())
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


def _processor() -> str:
    """What tells processors with different instructions apart."""
    try:
        lines = _CPU_INFO.read_text().splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))}))


def _compile(compiler: str, library: Path) -> None:
    """Compile beside `library`, then rename, so that processes that start together do not read half a file."""
    handle, name = tempfile.mkstemp(dir=library.parent, suffix=".so")
    os.close(handle)
    try:
        command = [compiler, *_FLAGS, *map(str, SOURCES), "-o", name, "-lm"]
        subprocess.run(command, capture_output=True, text=True, timeout=_MOST_SECONDS, check=True)
        Path(name).replace(library)
    finally:
        Path(name).unlink(missing_ok=True)
