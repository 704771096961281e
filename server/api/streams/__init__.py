"""`/v1/streams`: the answers that are being streamed."""
