"""From settings to a running engine, for the commands that load a model."""
