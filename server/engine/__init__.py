"""The batching engine: one model, and one thread that owns it. It works on token ids and never sees text."""
