"""The batching engine: one model, one thread that owns it. Knows nothing of HTTP, text or files of vectors."""
