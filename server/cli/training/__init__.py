"""`tiller train`, `evaluate`, `sweep` and `study`."""
