"""The answers of chats: the parts they have, the model's format for them, constrained decoding, and parsing."""
