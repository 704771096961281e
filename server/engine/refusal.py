"""The error for a model that the engine cannot run."""

from __future__ import annotations


class ModelRefused(Exception):
    """The model cannot be loaded, or not run exactly; the message says why and what would help."""
