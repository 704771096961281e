"""The registry of vectors on disk, and what can be wrong with it."""

from vectors.store.records import RevisionRecord
from vectors.store.registry import StoredVector, VectorStore

__all__ = ["RevisionRecord", "StoredVector", "VectorStore"]
