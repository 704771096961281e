"""The HTTP API: OpenAI's endpoints, the vector registry, and endpoints for operators. It never runs a model."""
