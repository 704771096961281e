"""`tiller chat` and `tiller vectors`: commands that talk to a running server."""
