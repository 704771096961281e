"""What a server says of itself: models, tokens, health, metrics, and the description of its API."""
