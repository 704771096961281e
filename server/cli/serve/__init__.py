"""`tiller serve`."""
