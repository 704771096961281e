"""The tables of a study: the effect of each variant and site on each task, and its mean over categories of tasks.

Two readings of the same tests are shown together. `presented` figures are for each prompt in the one order that the
method shows it in, with Student's t-test over seeds: with `paper` letters that is the protocol of Cui & Chen 2025
(arXiv:2509.22739). The others are letter-balanced: an item counts by the share of its rotations answered correctly.
They come with the corrected resampled t-test over seeds, which allows for splits of one pool sharing items, and with
the exact paired test over the items of the first seed.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vectors.study.definition import ModelCase, Study, StudyCell, StudyTask
from vectors.training.plots import Bar, effects
from vectors.training.significance import SeedsTest, corrected_seeds_test, holm, paired_test, seeds_test

Records = Mapping[ModelCase, Mapping[StudyCell, Mapping[str, Any]]]
"""The cells of each model."""

Row = dict[str, Any]

OVERALL = "overall"
_P_VALUES = ("p", "presented_p", "exact_p")


def effect_rows(study: Study, records: Records) -> list[Row]:
    """A row for each model, number of exemplars, site, variant and task, in the study's order.

    Accuracies and effects are means over seeds, shares of 1. Intervals, `t` and the one-sided `p` are those of the
    corrected resampled t-test, and Student's over seeds for `presented_…`; with a single seed the interval is that of
    its items, without t and p. `over_chance` is the steered model's lead over always saying one letter, `over_text`
    over answering by the options' texts alone. `exact_p`, `over_chance_p`, `over_text_p` and the counts come from the
    first seed with a result. `…_holm` are adjusted for all tasks, sites and variants of the same model and exemplars,
    so that the best of these may be picked out. None means that there is no such figure.
    """
    rows = []
    for case, cells in records.items():
        for icl in study.icl:
            family = [
                _effect_row(case, task, [StudyCell(task.name, variant, site, icl, seed) for seed in study.seeds], cells)
                for site in study.sites
                for variant in study.variants
                for task in study.tasks
            ]
            _adjust(family)
            rows += family
    return rows


def mean_rows(study: Study, records: Records) -> list[Row]:
    """A row for each model, number of exemplars, site, variant and category of tasks, then one over all tasks.

    A seed's figure is its mean over the tasks with any result; only seeds with all of these tasks count. `exact_p` is
    for the items of all tasks' first seeds together.
    """
    categories = [*dict.fromkeys(task.category for task in study.tasks), OVERALL]
    rows = []
    for case, cells in records.items():
        for icl in study.icl:
            for site in study.sites:
                for variant in study.variants:
                    for category in categories:
                        tasks = [task for task in study.tasks if category in (task.category, OVERALL)]
                        seeds = {
                            task.name: [StudyCell(task.name, variant, site, icl, seed) for seed in study.seeds]
                            for task in tasks
                        }
                        found = {"variant": variant, "site": site, "icl": icl, "category": category}
                        rows.append(_name_of(case) | found | _mean_row(seeds, cells))
    return rows


def _name_of(case: ModelCase) -> Row:
    return {"model": case.model, "adapter": case.adapter}


def _effect_row(
    case: ModelCase, task: StudyTask, seeds: Sequence[StudyCell], cells: Mapping[StudyCell, Mapping[str, Any]]
) -> Row:
    known = [cells[cell] for cell in seeds if cell in cells]
    done = [record for record in known if record["reason"] is None]
    first = seeds[0]
    row = _name_of(case) | {
        "task": task.name,
        "attribute": task.attribute,
        "category": task.category,
        "variant": first.variant,
        "site": first.site,
        "icl": first.icl,
        "seeds": len(done),
        "failed": len(known) - len(done),
        "missing": len(seeds) - len(known),
        "unsteered_wins": sum(record["unsteered_wins"] for record in done),
    }
    row |= _figures([[record] for record in done])
    if len(done) == 1:
        row["low"], row["high"] = done[0]["test"]["ci95"]
    changes = [record["retention"]["change"] for record in done if record["retention"] is not None]
    row |= _counts(done[:1]) | {
        "exact_p": done[0]["test"]["p"] if done else None,
        "over_chance_p": done[0]["test"]["over_chance"]["p"] if done else None,
        "over_text_p": done[0]["test"]["over_text"]["p"] if done else None,
        "retention_change": _mean(changes),
        "reason": next((record["reason"] for record in known if record["reason"] is not None), None),
    }
    return row


def _mean_row(seeds: Mapping[str, Sequence[StudyCell]], cells: Mapping[StudyCell, Mapping[str, Any]]) -> Row:
    done = {
        task: {cell.seed: cells[cell] for cell in own if cell in cells and cells[cell]["reason"] is None}
        for task, own in seeds.items()
    }
    given = [found for found in done.values() if found]
    common = [seed for seed in next(iter(given), {}) if all(seed in found for found in given)]
    firsts = [next(iter(found.values())) for found in given]
    row: Row = {"tasks": len(given), "tasks_failed": len(done) - len(given), "seeds": len(common)}
    row |= _figures([[found[seed] for found in given] for seed in common]) | _counts(firsts)
    row["exact_p"] = _pooled_p(firsts) if firsts else None
    return row


def _figures(seeds: Sequence[Sequence[Mapping[str, Any]]]) -> Row:
    """Means over seeds of means over a seed's results, and the tests over seeds."""
    baselines = [_mean([record["baseline"]["value"] for record in seed]) for seed in seeds]
    gains = [_mean([record["test"]["gain"] for record in seed]) for seed in seeds]
    presented = [_mean([record["test"]["presented"]["baseline"] for record in seed]) for seed in seeds]
    presented_gains = [_mean([record["test"]["presented"]["gain"] for record in seed]) for seed in seeds]
    tests = (_corrected(seeds), seeds_test([value for value in presented_gains if value is not None]))
    row: Row = {}
    for prefix, before, differences, tested in (
        ("", baselines, gains, tests[0]),
        ("presented_", presented, presented_gains, tests[1]),
    ):
        baseline, effect = _mean(before), _mean(differences)
        row |= {
            f"{prefix}baseline": baseline,
            f"{prefix}steered": None if baseline is None or effect is None else baseline + effect,
            f"{prefix}effect": effect,
            **{f"{prefix}{name}": value for name, value in _test_row(tested).items()},
        }
    for bar in ("over_chance", "over_text"):
        row[bar] = _mean([_mean([record["test"][bar]["gain"] for record in seed]) for seed in seeds])
    row["letter_bias"] = None if row["effect"] is None else row["presented_effect"] - row["effect"]
    return row


def _corrected(seeds: Sequence[Sequence[Mapping[str, Any]]]) -> SeedsTest | None:
    """The corrected test of the seeds' mean gains, each the mean of independent results."""
    records = [record for seed in seeds for record in seed]
    if not records:
        return None
    num_test, num_train = (sum(record["split"][part] for record in records) for part in ("test", "train"))
    return corrected_seeds_test(
        [sum(record["test"]["gain"] for record in seed) / len(seed) for seed in seeds],
        [math.hypot(*(record["test"]["standard_error"] for record in seed)) / len(seed) for seed in seeds],
        num_test / num_train,
    )


def _test_row(tested: SeedsTest | None) -> Row:
    if tested is None:
        return {"low": None, "high": None, "t": None, "p": None}
    return {"low": tested.low, "high": tested.high, "t": tested.t, "p": tested.p}


def _counts(records: Sequence[Mapping[str, Any]]) -> Row:
    return {
        "items": sum(record["baseline"]["num_items"] for record in records) if records else None,
        "wrong_to_right": sum(record["test"]["wrong_to_right"] for record in records) if records else None,
        "right_to_wrong": sum(record["test"]["right_to_wrong"] for record in records) if records else None,
    }


def _pooled_p(records: Sequence[Mapping[str, Any]]) -> float:
    """The paired test for the items of all records together; groups are each record's own."""
    before, after, groups = [], [], []
    for number, record in enumerate(records):
        items = record["items"]
        before += [right / asked for right, asked in zip(items["right_before"], items["prompts"], strict=True)]
        after += [right / asked for right, asked in zip(items["right_after"], items["prompts"], strict=True)]
        groups += [None if group is None else f"{number} {group}" for group in items["group"]]
    return paired_test(before, after, groups).p


def _adjust(family: Sequence[Row]) -> None:
    for name in _P_VALUES:
        adjusted = holm({str(number): row[name] for number, row in enumerate(family) if row[name] is not None})
        for number, row in enumerate(family):
            row[f"{name}_holm"] = adjusted.get(str(number))


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def study_files(study: Study, records: Records) -> dict[str, bytes]:
    """The tables by file name: JSON, CSV, Markdown, and plots of the effects (PNG).

    Raises `MissingDependency`.
    """
    rows, means = effect_rows(study, records), mean_rows(study, records)
    whole = {"study": study.to_json(), "effects": rows, "means": means}
    return {
        "study.json": (json.dumps(whole, indent=1, allow_nan=False) + "\n").encode(),
        "effects.csv": _csv(rows),
        "means.csv": _csv(means),
        "study.md": _markdown(study, rows, means).encode(),
        **_plots(rows, means),
    }


def _csv(rows: Sequence[Row]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _markdown(study: Study, rows: Sequence[Row], means: Sequence[Row]) -> str:
    letters = study.method.letters
    protocol = (
        "the paper's protocol: one order of options for all items of a seed, bare letters, the authors' prompts and"
        " grids, the first of the best cells"
        if study.method.is_paper
        else "each item in its own order, with balanced letters; for the paper's protocol set `letters: paper`"
    )
    lines = [
        f"# {_cell(study.name)}",
        "",
        f"Letters: `{letters}`. Accuracies in %, effects in percentage points, means over seeds with 95 % intervals.",
        "",
        "- **balanced**: letter-balanced, every item under every rotation of its options; p from the paired test over"
        " the items of the first seed, intervals from the corrected resampled t-test (Nadeau & Bengio 2003).",
        f"- **as presented**: {protocol}; p from the one-sided t-test over seeds, as Cui & Chen report it"
        " (arXiv:2509.22739, v1 2025 to v3 2026)."
        " Seeds resample one pool of items, so this p is too small.",
        "- **letters**: the part of the effect as presented that vanishes when the options are rotated.",
        "- **over chance**: how far the steered model, letter-balanced, is above always answering with one letter,"
        " with the p of the first seed. A model below chance can gain without learning anything.",
        "- **over text**: the same against answering by the options' texts alone, such as No to everything.",
        "- **Holm**: the preceding p, adjusted for all tasks, sites and variants of the same model and exemplars: the"
        " best of them may be picked out.",
        "",
        "## Means over tasks",
        "",
    ]
    heads = ["model", "ICL", "site", "variant"]
    figures = ["baseline", "effect, balanced", "exact p", "effect as presented", "t-test p", "letters"]
    lines += _table(
        [*heads, "category", "tasks", "seeds", *figures],
        ([*_heads(row), row["category"], row["tasks"], row["seeds"], *shown_figures(row)] for row in means),
    )
    lines += ["", "## Tasks", ""]
    holm_figures = [*figures[:3], "Holm", *figures[3:5], "Holm", figures[5]]
    lines += _table(
        [*heads, "task", "seeds", *holm_figures, "over chance", "over text"],
        ([*_heads(row), row["attribute"], row["seeds"], *_shown_adjusted(row), *_over_both(row)] for row in rows),
    )
    failed = [row for row in rows if row["failed"] or row["missing"]]
    if failed:
        lines += ["", "## Without a result", ""]
        lines += _table(
            [*heads, "task", "failed", "not run", "why"],
            ([*_heads(row), row["attribute"], row["failed"], row["missing"], row["reason"] or ""] for row in failed),
        )
    return "\n".join(lines) + "\n"


def _heads(row: Row) -> list[object]:
    return [ModelCase(row["model"], row["adapter"]).label, row["icl"], row["site"], row["variant"]]


def shown_figures(row: Row) -> list[str]:
    """Baseline, balanced effect, exact p, effect as presented, its p, and the letters' part, as shown in tables."""
    return [
        _percent(row["baseline"]),
        _effect(row, ""),
        _p(row["exact_p"]),
        _effect(row, "presented_"),
        _p(row["presented_p"]),
        _points(row["letter_bias"]),
    ]


def _shown_adjusted(row: Row) -> list[str]:
    found = shown_figures(row)
    return [*found[:3], _p(row["exact_p_holm"]), *found[3:5], _p(row["presented_p_holm"]), found[5]]


def _over_both(row: Row) -> list[str]:
    return [f"{_points(row[bar])} (p {_p(row[f'{bar}_p'])})" for bar in ("over_chance", "over_text")]


def _table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    lines = [heads, ["---"] * len(heads), *rows]
    return [f"| {' | '.join(_cell(str(value)) for value in line)} |" for line in lines]


def _cell(text: str) -> str:
    return " ".join(text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").split())


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"


def _points(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:+.1f}"


def _effect(row: Row, prefix: str) -> str:
    low, high = row[f"{prefix}low"], row[f"{prefix}high"]
    interval = "" if low is None else f" [{_points(low)}, {_points(high)}]"
    return _points(row[f"{prefix}effect"]) + interval


def _p(value: float | None) -> str:
    return "–" if value is None else "< 0.0001" if value < 1e-4 else f"{value:.4f}"


def _plots(rows: Sequence[Row], means: Sequence[Row]) -> dict[str, bytes]:
    """A forest plot of the tasks and means for each model, exemplars, site, variant and reading."""
    names = ("model", "adapter", "icl", "site", "variant")
    families = list(dict.fromkeys(tuple(row[name] for name in names) for row in rows))
    models = list(dict.fromkeys(family[:2] for family in families))
    plots = {}
    for family in families:
        own = [row for row in (*rows, *means) if tuple(row[name] for name in names) == family]
        model, adapter, icl, site, variant = family
        number = f"-model{models.index((model, adapter)) + 1}" if len(models) > 1 else ""
        for prefix, reading in (("", "letter-balanced"), ("presented_", "as presented")):
            bars = [bar for bar in (_bar(row, prefix) for row in own) if bar is not None]
            if bars:
                title = f"{variant}, {site}, {icl} exemplars, {reading}: {ModelCase(model, adapter).label}"
                name = f"effects-{'balanced' if not prefix else 'presented'}-{variant}-{site}-icl{icl}{number}.png"
                plots[name] = effects(title, bars)
    return plots


def _bar(row: Row, prefix: str) -> Bar | None:
    effect, low, high = (row[f"{prefix}{name}"] for name in ("effect", "low", "high"))
    if effect is None:
        return None
    label = row["attribute"] if "task" in row else f"mean: {row['category']}"
    # Student's interval of few seeds may exceed the possible differences of shares
    return Bar(label, effect, max(-1.0, effect if low is None else low), min(1.0, effect if high is None else high))
