"""SchemaRefused: what is raised for a JSON schema that cannot be enforced."""

from __future__ import annotations


class SchemaRefused(Exception):
    """A schema that cannot be enforced; the message says why, and names the keyword."""
