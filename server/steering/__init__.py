"""Steering: plans, their rows on the device, and the hooks that apply them to a model."""
