"""Attention over the paged KV cache: what the model calls in place of its own."""
