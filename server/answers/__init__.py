"""What a chat's answer may consist of, how the model writes it, how it is constrained, and how it is read."""
