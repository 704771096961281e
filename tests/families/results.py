"""What the sweep says in the end: a table, the comparison with the recorded list, and the tables of the documents."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from tests.families.children import Outcome
from tests.families.verdict import FAULTS, KINDS, Kind, Verdict, read_verdicts
from vectors.vocabulary import SITES

RECORDED = Path(__file__).with_name("recorded.json")
"""The verdicts that are expected, by family."""


def failures(found: Mapping[str, Verdict], recorded: Mapping[str, Verdict]) -> list[str]:
    """What is worse than recorded: faults, families that are exact no more, sites that are gone or join otherwise."""
    said = []
    for name, verdict in found.items():
        expected = recorded.get(name, Verdict("unbuilt"))
        if verdict.kind in FAULTS:
            said.append(f"{name}: {verdict.kind}: {verdict.why}")
        elif expected.kind == "exact" and verdict.kind != "exact":
            said.append(f"{name}: expected exact, got {verdict.kind}: {verdict.why}")
        elif expected.kind == "exact" and not expected.sites.items() <= verdict.sites.items():
            said.append(f"{name}: expected the sites {expected.sites}, got {verdict.sites}")
    return said


def news(found: Mapping[str, Verdict], recorded: Mapping[str, Verdict]) -> list[str]:
    """What is not as recorded and no failure: it is to be recorded."""
    return [
        f"{name}: {verdict.kind}" + (f": {verdict.why}" if verdict.why else "")
        for name, verdict in found.items()
        if verdict.kind not in FAULTS and verdict != recorded.get(name)
    ]


def counted(verdicts: Iterable[Verdict]) -> str:
    """How many there are of each kind, in words."""
    numbers = Counter(verdict.kind for verdict in verdicts)
    return ", ".join(f"{numbers[kind]} {kind}" for kind in KINDS if numbers[kind])


def outcomes_markdown(outcomes: Iterable[Outcome]) -> str:
    """A table of a run, a row for each family."""
    rows = [
        f"| `{outcome.name}` | {outcome.verdict.kind} | {outcome.seconds:.1f} | {_cell(outcome.verdict.why)} |"
        for outcome in sorted(outcomes, key=lambda outcome: (KINDS.index(outcome.verdict.kind), outcome.name))
    ]
    return "\n".join(["| family | verdict | seconds | why |", "|---|---|---|---|", *rows]) + "\n"


def sites_markdown() -> str:
    """The table of the documents: each exact family's sites. Families that are alike share a row.

    Below it: which families are exact in a weaker sense, and in which.
    """
    rows: dict[tuple[str, ...], list[str]] = {}
    weaker = []
    for name, verdict in read_verdicts(RECORDED).items():
        if verdict.kind == "exact":
            weaker += [f"- `{name}` is exact {verdict.why}."] if verdict.why else []
            places = (*(site for site in SITES if site != "residual"), "block")
            cells = tuple(_cell(verdict.sites.get(place, "–")) for place in places)
            no_residual = "" if "residual" in verdict.sites else "no `residual`; "
            rows.setdefault((*cells[:-1], (no_residual + cells[-1]).removesuffix("; –")), []).append(f"`{name}`")
    lines = [
        f"| {', '.join(names)} | {' | '.join(cells)} |"
        for cells, names in sorted(rows.items(), key=lambda row: (-len(row[1]), row[1]))
    ]
    head = "| family | `attention` | `mlp` | `post_attention_norm` | the block |"
    return "\n".join([head, "|---|---|---|---|---|", *lines, *(["", *weaker] if weaker else [])]) + "\n"


def refusals_markdown() -> str:
    """The table of the documents: the families that are refused, by what they are told."""
    return _by_reason("refused", "the message")


def unbuilt_markdown() -> str:
    """The table of the documents: the families that transformers cannot make a tiny model of here."""
    return _by_reason("unbuilt", "what transformers says")


def _by_reason(kind: Kind, head: str) -> str:
    rows: dict[str, list[str]] = {}
    for name, verdict in read_verdicts(RECORDED).items():
        if verdict.kind == kind:
            rows.setdefault(_cell(_in_general(verdict.why, name)), []).append(f"`{name}`")
    ordered = sorted(rows.items(), key=lambda row: (-len(row[1]), row))
    lines = [f"| {', '.join(names)} | {why} |" for why, names in ordered]
    return "\n".join([f"| family | {head} |", "|---|---|", *lines]) + "\n"


def _in_general(message: str, name: str) -> str:
    """A message without what only this family has: its class, its name, its numbers."""
    first, _, rest = message.partition(" ")
    if first.rstrip(":").isidentifier() and first != first.lower():
        message = f"… {rest}"
    return re.sub(r"\d+(\.\d+)?%", "…%", message.replace(name, "…"))


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
