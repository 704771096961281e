"""The table of faults: every step on the disk of every change, refused in every way, and what comes of it."""
