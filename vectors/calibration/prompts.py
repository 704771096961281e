"""The prompts that a calibration uses if it is given none, written for this purpose."""

from __future__ import annotations

import json

PROMPTS = (
    "Any advice about an old friend?",
    "What should I cook for four guests?",
    "Tell me about your favourite season.",
    "I have been thinking about the garden.",
    "How can I sleep better?",
    "What is the capital of France?",
    "My neighbour plays loud music. What can I do?",
    "I have to give a talk next week.",
    "Why is the sky blue?",
    "Any advice about a long train ride?",
    "I would like to learn to paint.",
    "What do you think about the weather today?",
    "How do I get a stain out of a shirt?",
    "I am going to visit my sister in the city.",
    "Write two sentences about a river.",
    "What is a good present for a child?",
    "How many legs does a spider have?",
    "I lost my keys again.",
    "Should I walk or take the bus?",
    "Tell me something about bread.",
    "I wonder whether I should move to the country.",
    "How long do I boil an egg?",
    "What makes a good teacher?",
    "I spent the whole morning in the library.",
)

PROMPTS_FILE = "calibration-prompts.jsonl"
"""Their name as a file."""


def prompts_jsonl() -> bytes:
    """The prompts as a file that `vectors.behaviour.prompts.read_prompts` reads."""
    return "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS).encode()
