"""The wire: OpenAI's endpoints, the vector registry, and what operators look at. Knows HTTP; never runs a model."""
