"""Reading: what is needed to split one answer into its parts."""

from __future__ import annotations

from dataclasses import dataclass

from transformers.utils.chat_parsing.response_templates import ResponseTemplate

from server.marks import NO_MARKS, Marks


@dataclass(frozen=True)
class Reading:
    """How an answer is read.

    `template`: its parts, with delimiters in marked text (see `Marks`); None: the answer is only content.
    `first_only`: the parts that can only come before any content. What looks like their delimiter later is content.
    `bare_names`: if calls have no delimiter of their own, the functions that may be called; else None.
    """

    template: ResponseTemplate | None
    marks: Marks = NO_MARKS
    first_only: frozenset[str] = frozenset()
    bare_names: frozenset[str] | None = None


CONTENT = Reading(None)
"""Everything is content."""
