"""Vectors on a plain transformers model, without an engine: for scripts and notebooks."""
