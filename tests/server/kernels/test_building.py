"""The kernels are compiled once, kept where only the user can write, and never needed."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from server.kernels.building import find_compiler
from tests.server.cli.running import ROOT, environment

BUILD = "from server.kernels.building import built_library; print(built_library())"


def built(home: Path, **others: str) -> tuple[str, str]:
    """What a new process finds, and its log."""
    code = f"import logging; logging.basicConfig(level='INFO'); {BUILD}"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment({"HOME": str(home), **others}),
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip(), done.stderr


@pytest.fixture
def _compiler() -> None:
    if find_compiler() is None:
        pytest.skip("there is no C compiler")


@pytest.mark.usefixtures("_compiler")
def test_the_library_is_made_once_and_by_one_of_many(tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        made = [path for path, _ in pool.map(lambda _: built(tmp_path), range(2))]
    assert made[0] == made[1]
    (library,) = (tmp_path / ".cache" / "tiller" / "kernels").iterdir()
    assert str(library) == made[0]
    before = library.stat()
    assert built(tmp_path)[0] == made[0]
    assert library.stat().st_mtime_ns == before.st_mtime_ns
    assert (library.parent.stat().st_mode & 0o777) == 0o700


@pytest.mark.usefixtures("_compiler")
def test_a_folder_that_others_can_write_to_is_not_used(tmp_path: Path) -> None:
    folder = tmp_path / ".cache" / "tiller" / "kernels"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    path, _ = built(tmp_path, TMPDIR=str(tmp_path))
    assert Path(path).parent.parent == tmp_path
    assert Path(path).parent.stat().st_mode & 0o077 == 0
    assert not list(folder.iterdir())


def test_without_a_compiler_there_are_none_and_the_log_says_so(tmp_path: Path) -> None:
    path, log = built(tmp_path, PATH=str(tmp_path))
    assert path == "None"
    assert "no C compiler was found, so PyTorch's own kernels are used" in log


def test_a_compiler_that_fails_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    compiler = tmp_path / "cc"
    compiler.write_text("#!/bin/sh\ntest \"$1\" = --version && exit 0\necho 'it does not work today' >&2\nexit 1\n")
    compiler.chmod(0o755)
    path, log = built(tmp_path / "home", PATH=f"{tmp_path}:/usr/bin:/bin")
    assert path == "None"
    assert "the kernels cannot be compiled, so PyTorch's own are used: it does not work today" in log
    assert os.listdir(tmp_path / "home" / ".cache" / "tiller" / "kernels") == []
