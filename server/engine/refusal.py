"""The error of a model that the engine does not take."""

from __future__ import annotations


class ModelRefused(Exception):
    """The model cannot be loaded or cannot be run exactly; the message says why and what would help."""
