"""Endpoints about the server itself: models, tokens, health, metrics, and the description of the API."""
