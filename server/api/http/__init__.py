"""What HTTP asks of every route: bodies, keys, limits, errors, streams, logs. It knows no endpoint."""
