"""The shared parts of endpoints that generate: wire fields, steering, choices, and running a request."""
