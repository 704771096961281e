"""`tiller bench`: how fast an engine is, and how fast a running server is."""
