"""Attention over the paged KV cache: the interface, its implementations, and the function that a model calls."""
