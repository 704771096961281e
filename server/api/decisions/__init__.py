"""`POST /v1/decisions`."""
