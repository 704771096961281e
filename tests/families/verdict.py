"""The verdict on a family, as a child process hands it over and as the recorded list keeps it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias, get_args

Kind: TypeAlias = Literal["exact", "refused", "unbuilt", "wrong", "traceback"]
"""`exact`: as transformers itself. `refused`: with a message. `unbuilt`: transformers cannot make the tiny model, so
nothing was tried. The other two are faults: accepted but different, and an exception or a timeout."""

KINDS: tuple[Kind, ...] = get_args(Kind)
FAULTS: tuple[Kind, ...] = ("wrong", "traceback")


@dataclass(frozen=True)
class Verdict:
    """What came of a family.

    `why`: the refusal's message, or what is wrong, or how exact. `sites`: by site offered, its module and how its
    output joins the residual stream (`joins.py`); "block" says what is peculiar to the block.
    """

    kind: Kind
    why: str = ""
    sites: dict[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Without what is empty."""
        return {name: value for name, value in asdict(self).items() if value}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """The inverse of `as_json`."""
        return cls(**value)


def read_verdicts(path: Path) -> dict[str, Verdict]:
    """The verdicts in a file, by family."""
    return {name: Verdict.from_json(value) for name, value in json.loads(path.read_text(encoding="utf-8")).items()}


def write_verdicts(path: Path, verdicts: dict[str, Verdict]) -> None:
    """Write a family a line, in the order of their names, so that a change reads well."""
    lines = [
        f"{json.dumps(name)}: {json.dumps(verdicts[name].as_json(), ensure_ascii=False)}" for name in sorted(verdicts)
    ]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
