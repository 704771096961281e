"""tiller's server: runs one model, steers it per request, and speaks the OpenAI wire contract."""

__version__ = "0.1.0"
