"""What kind of files a model's source has, so that formats that cannot be served are named, with the way out."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from huggingface_hub import list_repo_files
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from server.engine.refusal import ModelRefused


def check_files(source: str, *, revision: str | None = None) -> None:
    """Refuse a folder or hub id `source` that has a model in another format than safetensors.

    Says nothing of what it cannot see, such as a hub that cannot be reached. Raises `ModelRefused`.
    """
    names = _names_of(source, revision)
    if names is None:
        if source.lower().endswith(("-gguf", ".gguf")):
            raise ModelRefused(gguf_reason(source))
        return
    has = {Path(name).suffix for name in names}
    if "config.json" not in names:
        if "adapter_config.json" in names:
            raise ModelRefused(f"{source} is an adapter: serve its base model with --adapter {source}")
        if ".gguf" in has:
            raise ModelRefused(gguf_reason(source, next(name for name in names if name.endswith(".gguf"))))
        raise ModelRefused(f"{source} has no config.json: expected a model that transformers can load")
    if ".safetensors" in has:
        return
    if ".gguf" in has:
        raise ModelRefused(gguf_reason(source, next(name for name in names if name.endswith(".gguf"))))
    if has & {".bin", ".pt", ".pth"}:
        raise ModelRefused(
            f"{source} has its weights only in pickled files (.bin), which may run code when they are read; convert "
            f"them where you trust them: AutoModelForCausalLM.from_pretrained({source!r}, use_safetensors=False)"
            ".save_pretrained(FOLDER), and the tokenizer likewise"
        )
    raise ModelRefused(f"{source} has no weights: expected .safetensors files beside config.json")


def gguf_reason(source: str, file: str = "FILE.gguf") -> str:
    """Why a model in a GGUF file is refused, and what would help."""
    return (
        f"{source} is a GGUF model, which tiller does not serve: use the safetensors model that it was made from, or "
        f"convert it with transformers: AutoModelForCausalLM.from_pretrained(FOLDER, gguf_file={Path(file).name!r})"
        ".save_pretrained(NEW_FOLDER), and the tokenizer likewise; vLLM and llama.cpp serve it as it is"
    )


def _names_of(source: str, revision: str | None) -> Collection[str] | None:
    """The names of the files in `source`; None when the hub does not say."""
    folder = Path(source)
    if folder.is_dir():
        return sorted(path.name for path in folder.iterdir())
    try:
        return sorted(list_repo_files(source, revision=revision))
    except (HfHubHTTPError, HFValidationError, OSError, ValueError):
        return None
