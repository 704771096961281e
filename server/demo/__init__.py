"""The embedded model: a small chat model made by this project, and the two vectors that ship beside it.

Importing this package is cheap: it names the folders and imports no tensor library.
"""

from pathlib import Path

MODEL_NAME = "tiller-demo"
"""The name under which the embedded model is served."""

MODEL_DIR = Path(__file__).parent / "model"
"""The folder with the trained weights, the tokenizer, the chat template and the card."""

VECTORS_DIR = Path(__file__).parent / "vectors"
"""The folder with the shipped vectors, one safetensors file each, named after the vector."""

__all__ = ["MODEL_DIR", "MODEL_NAME", "VECTORS_DIR"]
