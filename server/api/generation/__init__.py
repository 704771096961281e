"""What endpoints that generate share: wire fields, steering, choices, and the run of a request on the engine."""
