"""The parts of HTTP that every route shares: bodies, keys, limits, errors, streams, logs."""
