"""`tiller vectors` against a running server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save

from tests.server.cli.conftest import HIDDEN_SIZE
from tests.server.cli.running import call_tiller, tiller
from tests.vectors.formats.containers import repsteer
from vectors import VectorClient


@pytest.fixture
def stored(server_url: str, vector_file: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of a vector in the registry, the test's own."""
    name: str = request.node.name[:60]
    shown = call_tiller("vectors", "put", name, vector_file, "--url", server_url)
    assert shown.returncode == 0, shown.stderr
    yield name
    call_tiller("vectors", "rm", name, "--url", server_url)


def test_put_list_get_rm(server_url: str, stored: str, tmp_path: Path) -> None:
    listed = tiller("vectors", "list", "--url", server_url)
    assert listed.returncode == 0
    (row,) = [line for line in listed.stdout.splitlines() if line.startswith(stored)]
    assert row.split()[2:] == ["0", "1", "add", "response"]

    file = tmp_path / "copy"
    assert call_tiller("vectors", "get", stored, "-o", file, "--url", server_url).returncode == 0
    again = call_tiller("vectors", "put", f"{stored}2", file, "--url", server_url)
    assert again.stdout.split("@")[1][:12] == row.split()[1]  # a download uploaded is the same revision

    for name in (stored, f"{stored}2"):
        assert call_tiller("vectors", "rm", name, "--url", server_url).stdout == f"{name}: removed\n"
    assert stored not in call_tiller("vectors", "list", "--url", server_url).stdout


def test_defaults_are_set_by_options(server_url: str, stored: str, vector_file: Path) -> None:
    options = ["--scale", "-0.5", "--positions", "all", "--operation", "clamp", "--description", "Mood, [bold]née[/]"]
    shown = call_tiller("vectors", "put", stored, vector_file, *options, "--url", server_url)
    assert shown.returncode == 0, shown.stderr
    listed = call_tiller("vectors", "list", "--json", "--url", server_url)
    (vector,) = [vector for vector in map(json.loads, listed.stdout.splitlines()) if vector["name"] == stored]
    assert (vector["default_scale"], vector["positions"], vector["operation"]) == (-0.5, "all", "clamp")
    assert vector["description"] == "Mood, [bold]née[/]"
    assert "[bold]née[/]" in call_tiller("vectors", "list", "--url", server_url).stdout


def test_a_name_is_shown_with_its_history_and_goes_back(server_url: str, stored: str, vector_file: Path) -> None:
    put = call_tiller("vectors", "put", stored, vector_file, "--description", "newer, [bold]", "--url", server_url)
    newer = put.stdout.split("@")[1][:12]
    shown = call_tiller("vectors", "show", stored, "--url", server_url)
    assert shown.returncode == 0, shown.stderr
    about, history = shown.stdout.split("\n\n")
    fields = dict(line.rstrip().split(maxsplit=1) for line in about.splitlines())
    assert (fields["name"], fields["revision"][:12], len(fields["revision"])) == (stored, newer, 64)
    assert (fields["layers"], fields["positions"], fields["description"]) == ("0", "response", "newer, [bold]")
    _, latest, first = history.splitlines()
    assert latest.startswith(f"{newer} (current) ")
    older = first.split()[0]

    (line,) = call_tiller("vectors", "show", stored, "--json", "--url", server_url).stdout.splitlines()
    vector = json.loads(line)
    assert [entry["revision"][:12] for entry in vector["history"]] == [newer, older]
    assert vector["norms"].keys() == {"0"}

    back = call_tiller("vectors", "rollback", stored, older, "--url", server_url)
    assert back.stdout.startswith(f"{stored}@{older}: residual at layers 0, ")
    assert f"{older} (current)" in call_tiller("vectors", "show", stored, "--url", server_url).stdout
    refused = call_tiller("vectors", "rollback", stored, "ffffffffffff", "--url", server_url)
    assert (refused.returncode, "no revision" in refused.stderr) == (1, True)


def test_what_the_server_refuses_is_one_line(server_url: str, stored: str, vector_file: Path) -> None:
    refused = call_tiller("vectors", "put", stored, vector_file, "--layer", "1", "--url", server_url)
    assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (1, "", 1)
    assert "layer" in refused.stderr
    assert "HTTP 400" in refused.stderr
    for name in ("nobody", "../up", "a/b", ".."):
        missing = call_tiller("vectors", "get", name, "-o", "-", "--url", server_url)
        assert (missing.returncode, missing.stdout, missing.stderr.count("\n")) == (1, "", 1)


def test_a_file_that_is_not_there_is_named(server_url: str, tmp_path: Path) -> None:
    shown = call_tiller("vectors", "put", "x", tmp_path / "none", "--url", server_url)
    assert (shown.returncode, shown.stderr.count("\n")) == (1, 1)
    assert "none cannot be read: No such file" in shown.stderr


def test_get_does_not_overwrite_unasked(server_url: str, stored: str, tmp_path: Path) -> None:
    taken = tmp_path / "taken.safetensors"
    taken.write_bytes(b"mine")
    shown = call_tiller("vectors", "get", str(tmp_path / "taken"), "--url", server_url)
    assert (shown.returncode, taken.read_bytes()) == (1, b"mine")
    shown = call_tiller("vectors", "get", stored, "-o", taken, "--url", server_url)
    assert shown.stdout == f"{taken}: {taken.stat().st_size} bytes\n"
    assert b"residual.0" in taken.read_bytes()


def test_the_format_is_the_servers_to_make(server_url: str, stored: str, tmp_path: Path) -> None:
    refused = call_tiller("vectors", "get", stored, "--format", "gguf", "-o", tmp_path / "v", "--url", server_url)
    assert "cannot have layer 0" in refused.stderr
    assert not (tmp_path / "v").exists()


def test_a_folder_is_put_as_one_file(server_url: str, vector_file: Path, tmp_path: Path) -> None:
    width = next(iter(load_file(vector_file).values())).shape[-1]
    vector_file.unlink()
    for name, content in repsteer(torch.ones(width), "resid_pre").items():
        (tmp_path / name).write_bytes(content)
    shown = call_tiller("vectors", "put", "from-folder", tmp_path, "--scale", "0.5", "--url", server_url)
    assert shown.returncode == 0, shown.stderr
    assert ": residual at layers 0, " in shown.stdout  # the input of block 1
    tiller("vectors", "rm", "from-folder", "--url", server_url)
    (tmp_path / "checksums.json").write_text("{}")
    refused = call_tiller("vectors", "put", "from-folder", tmp_path, "--url", server_url)
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    assert "zip of a folder: manifest.json: its content does not have the SHA-256" in refused.stderr
    for file in ("manifest.json", "checksums.json", "tensors.safetensors"):
        (tmp_path / file).unlink()
    empty = call_tiller("vectors", "put", "from-folder", tmp_path, "--url", server_url)
    assert (empty.returncode, empty.stderr.count("\n")) == (1, 1)
    assert "expected files of .safetensors" in empty.stderr


def test_one_feature_of_an_autoencoder_is_sent(server_url: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    decoder = torch.randn(5, HIDDEN_SIZE, generator=torch.Generator().manual_seed(1))
    config = {"architecture": "jumprelu", "metadata": {"hook_name": "blocks.1.hook_resid_pre"}}
    (tmp_path / "cfg.json").write_text(json.dumps(config), encoding="utf-8")
    (tmp_path / "sae_weights.safetensors").write_bytes(save({"W_dec": decoder}))
    name = request.node.name[:60]
    sae = ["vectors", "put", name, "--sae", tmp_path, "--url", server_url]
    put = call_tiller(*sae, "--feature", "3", "--scale", "2.5")
    assert put.returncode == 0, put.stderr
    understood, sent = put.stdout.splitlines()
    assert understood == (
        "SAELens (jumprelu), feature 3 of 5: residual at layer 0 (blocks.1.hook_resid_pre, the output of block 0), "
        f"length {decoder[3].norm():.4g}"
    )
    assert sent.startswith(f"{name}@")
    with VectorClient(server_url) as registry:
        vector = registry.vector(name)
        registry.delete(name)
    assert (vector.site, vector.layers, vector.default_scale) == ("residual", (0,), 2.5)
    assert torch.equal(vector.directions[0], decoder[3])
    assert vector.metadata["import"]["feature"] == "3 of 5"

    for more, code, says in [
        (["--feature", "5"], 1, "feature: expected 0 to 4, got 5"),
        ([], 2, "--sae needs --feature"),
        (["--feature", "0", "--layers", "1-2"], 2, "--layers is for a file"),
        (["--feature", "0", "--layer", "9"], 1, "layers [9] are outside the model"),
    ]:
        refused = call_tiller(*sae, *more)
        assert (refused.returncode, says in refused.stderr) == (code, True), refused.stderr
    refused = call_tiller("vectors", "put", name, tmp_path / "x", "--feature", "0", "--url", server_url)
    assert (refused.returncode, "are for --sae" in refused.stderr) == (2, True)
    (tmp_path / "sae_weights.safetensors").unlink()
    missing = call_tiller(*sae, "--feature", "0")
    assert (missing.returncode, "sae_weights.safetensors cannot be read: No such file" in missing.stderr) == (1, True)
