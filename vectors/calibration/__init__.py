"""Calibration: how strong a vector may be. See docs/dose.md."""
