"""`/v1/steering/vectors`: the registry of vectors."""
