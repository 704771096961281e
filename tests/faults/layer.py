"""The failing file layer: compiles `shim.c`, and steers it from within a process that has it preloaded."""

from __future__ import annotations

import ctypes
import enum
import shutil
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("shim.c")


class Fault(enum.IntEnum):
    """What happens at a step; the numbers are those of `shim.c`."""

    FAIL = 1
    """The system call fails with EIO, once."""
    FULL = 2
    """The disk is full from this step on."""
    SHORT = 3
    """A write writes half of its bytes and says so, which is not an error."""
    KILL = 4
    """SIGKILL before the step."""
    READ_ONLY = 5
    """The disk can only be read from this step on."""

    @property
    def lasts(self) -> bool:
        """True where later steps are refused too, until `disarm`."""
        return self in (Fault.FULL, Fault.READ_ONLY)


def missing_tools() -> str | None:
    """Why the layer cannot be used here; None if it can."""
    return None if shutil.which("cc") and Path("/proc/self/fd").is_dir() else "needs a C compiler (cc) and /proc"


def compile_layer(folder: Path) -> Path:
    """The library for `LD_PRELOAD`, made in `folder`."""
    library = folder / "faults.so"
    command = ["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(SOURCE), "-ldl"]
    subprocess.run(command, check=True, capture_output=True)
    return library


def arm(folder: Path, step: int, fault: Fault) -> None:
    """From now on count the steps under `folder`, and let `fault` happen at one of them; at none if it is negative."""
    _library().fault_arm(f"{folder}/".encode(), step, int(fault))


def disarm() -> list[str]:
    """Let everything pass again; returns the steps counted: what was done, and to which file."""
    library = _library()
    library.fault_disarm()
    library.fault_steps.restype = ctypes.c_char_p
    return bytes(library.fault_steps()).decode().splitlines()


def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(None)
    library.fault_arm.argtypes = [ctypes.c_char_p, ctypes.c_long, ctypes.c_int]
    return library
