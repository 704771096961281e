"""The error for a model that the engine cannot run."""

from __future__ import annotations


class ModelRefused(Exception):
    """The model cannot be loaded, or not run exactly; the message says why and what would help."""


def needs_own_code(error: Exception) -> bool:
    """True when transformers did not load something because its repository brings code, which is never run."""
    return "trust_remote_code" in str(error)


OWN_CODE = (
    "its repository brings code of its own, which tiller never runs; use a model that transformers has the code of, or "
    "serve this one with vLLM and its --trust-remote-code"
)
"""Why that is refused, and what would help."""
