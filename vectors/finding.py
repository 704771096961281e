"""Finding: one thing that is wrong with stored files, in plain words."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """`problem` names the file and what is wrong with it; `remedy` says how to put it right."""

    problem: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.problem}; {self.remedy}"
