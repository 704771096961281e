"""The soak: a real server on one folder, under everything at once, killed now and then; nothing may be lost or leak."""
