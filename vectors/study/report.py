"""The report of a study, `study.md`: what was compared, what it showed, and how to read it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vectors.study.choices import PHASES, SECONDS
from vectors.study.comparisons import COMPARISONS, treatments_of
from vectors.study.definition import ModelCase, Study
from vectors.study.effects import OVERALL
from vectors.study.figures import Records, Row

_PLACE = ("model", "ICL", "site", "variant")


def markdown(study: Study, records: Records, tables: dict[str, list[Row]]) -> str:
    """The report; `tables` are the rows of `effects`, `means` and the other tables by name."""
    lines = [f"# {_cell(study.name)}", "", *_introduction(study), "", "## Means over tasks", ""]
    figures = ["baseline", "effect, balanced", "exact p", "effect as presented", "t-test p", "letters"]
    lines += _table(
        [*_PLACE, "category", "tasks", "seeds", *figures],
        ([*_heads(row), row["category"], row["tasks"], row["seeds"], *shown_figures(row)] for row in tables["means"]),
    )
    lines += ["", "## Tasks", ""]
    holm_figures = [*figures[:3], "Holm", *figures[3:5], "Holm", figures[5]]
    lines += _table(
        [*_PLACE, "task", "seeds", *holm_figures, "over chance", "over text"],
        (
            [*_heads(row), row["attribute"], row["seeds"], *_shown_adjusted(row), *_over_both(row)]
            for row in tables["effects"]
        ),
    )
    lines += _comparisons(study, records, tables)
    lines += _grid(study, tables["grid"])
    lines += _choices(tables)
    failed = [row for row in tables["effects"] if row["failed"] or row["missing"]]
    if failed:
        lines += ["", "## Without a result", ""]
        lines += _table(
            [*_PLACE, "task", "failed", "not run", "why"],
            ([*_heads(row), row["attribute"], row["failed"], row["missing"], row["reason"] or ""] for row in failed),
        )
    return "\n".join(lines) + "\n"


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


def shown_comparison(row: Row) -> list[str]:
    """The two accuracies, balanced effect, exact p, effect as presented and its p, as shown in tables."""
    return [
        _percent(row["before"]),
        _percent(row["after"]),
        _effect(row, ""),
        _p(row["exact_p"]),
        _effect(row, "presented_"),
        _p(row["presented_p"]),
    ]


def _introduction(study: Study) -> list[str]:
    protocol = (
        "the paper's protocol: one order of options for all items of a seed, bare letters, the authors' prompts and"
        " grids, the first of the best cells"
        if study.method.is_paper
        else "each item in its own order, with balanced letters; for the paper's protocol set `letters: paper`"
    )
    return [
        f"Letters: `{study.method.letters}`. Accuracies in %, effects in percentage points, means over seeds with 95 %"
        " intervals.",
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
    ]


def _comparisons(study: Study, records: Records, tables: dict[str, list[Row]]) -> list[str]:
    treatments = treatments_of(study, records)
    lacking = []
    if any(study.adapters) and None not in study.adapters:
        lacking.append(
            "Adapters are compared with the model alone, which is not in this study: add `null` to `adapter`."
        )
    if any(study.icl) and 0 not in study.icl:
        lacking.append("Exemplars are compared with none, which is not in this study: add `0` to `icl`.")
    if not treatments and not lacking:
        return []
    lines = ["", "## Comparisons between conditions", "", *lacking]
    if not treatments:
        return lines
    lines += ["", *_how_compared()]
    figures = ["before", "after", "effect, balanced", "exact p", "effect as presented", "t-test p"]
    for number, treatment in enumerate(treatments, 1):
        rows = [row for row in tables["comparisons"] if row["treatment"] == number]
        means = [row for row in tables["comparison_means"] if row["treatment"] == number]
        lines += ["", f"### {number}. {_cell(treatment.title)}", ""]
        lines += _table(
            ["comparison", "site", "variant", "category", "tasks", "seeds", *figures],
            ([*_compared(row), row["category"], row["tasks"], row["seeds"], *shown_comparison(row)] for row in means),
        )
        lines.append("")
        lines += _table(
            ["comparison", "site", "variant", "task", "seeds", *figures[:4], "Holm", *figures[4:], "Holm"],
            ([*_compared(row), row["attribute"], row["seeds"], *_compared_adjusted(row)] for row in rows),
        )
        refused = [row for row in rows if row["reason"]]
        if refused:
            lines += ["", "Not compared:", ""]
            lines += [f"- {' '.join(_compared(row))}, {_cell(row['attribute'])}: {row['reason']}" for row in refused]
    return lines


def _how_compared() -> list[str]:
    lines = [
        "Two conditions are compared on the same held-out items of the same seed; p is small where the second is"
        " better. Each vector was trained for the model, adapter and exemplars that it steers. Where no vector takes"
        " part, variants and sites do not matter. Holm is over all tasks, sites, variants and comparisons of a"
        " treatment.",
        "",
    ]
    shown = {False: "base", True: "treated"}
    for comparison in COMPARISONS:
        sides = (comparison.before, comparison.after)
        name = " → ".join(shown[side.is_treated] + (" + vector" if side.is_steered else "") for side in sides)
        lines.append(f"- **{name}**: {comparison.meaning}.")
    return lines


def _grid(study: Study, rows: list[Row]) -> list[str]:
    names = ("model", "adapter", "icl", "site", "variant")
    places: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        if row["category"] == OVERALL and row["gain"] is not None:
            places.setdefault(tuple(row[name] for name in names), []).append(row)
    if not places:
        return []
    best = [max(own, key=lambda row: float(row["gain"])) for own in places.values()]
    scale = "scale (relative)" if study.method.relative_scales else "scale"
    return [
        "",
        "## Gain by layer and scale",
        "",
        "The cell with the highest mean gain on validation items over all tasks and seeds. It is the best of many, so"
        " its gain is too high. `grid.csv` has all cells, by category too, and `grid-….png` shows them. The standard"
        " error is over seeds, corrected for splits that share items.",
        "",
        *_table(
            [*_PLACE, "tasks", "seeds", "layer", scale, "gain", "standard error"],
            (
                [
                    *_heads(row),
                    row["tasks"],
                    row["seeds"],
                    row["layer"],
                    f"{row['scale']:g}",
                    _points(row["gain"]),
                    "–" if row["standard_error"] is None else f"{100 * row['standard_error']:.1f}",
                ]
                for row in best
            ),
        ),
    ]


def _choices(tables: dict[str, list[Row]]) -> list[str]:
    if not tables["stability"]:
        return []
    return [
        "",
        "## Chosen cells, bytes and seconds",
        "",
        "Layer × scale as chosen on validation items, with the number of seeds; dose: the length of what is added, the"
        " median over seeds with the smallest and largest, and in lengths of the activation. Bytes are those of the"
        " vector's file and of the adapter's files.",
        "",
        *_table(
            [
                *_PLACE,
                "task",
                "seeds",
                "layer × scale (seeds)",
                "dose",
                "relative dose",
                "vector bytes",
                "adapter bytes",
            ],
            (
                [
                    *_heads(row),
                    row["attribute"],
                    row["seeds"],
                    _counted(row["choices"]),
                    _dose(row),
                    f"{row['relative_dose']:.2g}",
                    row["vector_bytes"],
                    row["adapter_bytes"] or "–",
                ]
                for row in tables["stability"]
            ),
        ),
        "",
        "A search covers all variants and sites of a task, number of exemplars and seed at once. Its seconds, means"
        " over seeds:",
        "",
        *_table(
            ["model", "ICL", "task", "seeds", "seconds", *PHASES, "answers per second"],
            ([_label(row), row["icl"], row["attribute"], row["seeds"], *_shown_time(row)] for row in tables["times"]),
        ),
    ]


def _counted(choices: Sequence[tuple[tuple[int, float], int]]) -> str:
    return ", ".join(f"{layer} × {scale:g} ({count})" for (layer, scale), count in choices)


def _shown_time(row: Row) -> list[str]:
    pace = "–" if row["items_per_second"] is None else f"{row['items_per_second']:.0f}"
    return [f"{row['seconds']:.2f}", *(f"{row[name]:.2f}" for name in SECONDS.values()), pace]


def _dose(row: Row) -> str:
    return f"{row['dose']:.3g} [{row['dose_low']:.3g}, {row['dose_high']:.3g}]"


def _label(row: Row) -> str:
    return ModelCase(row["model"], row["adapter"]).label


def _heads(row: Row) -> list[object]:
    return [_label(row), row["icl"], row["site"], row["variant"]]


def _compared(row: Row) -> list[str]:
    return [row["comparison"], row["site"] or "–", row["variant"] or "–"]


def _shown_adjusted(row: Row) -> list[str]:
    found = shown_figures(row)
    return [*found[:3], _p(row["exact_p_holm"]), *found[3:5], _p(row["presented_p_holm"]), found[5]]


def _compared_adjusted(row: Row) -> list[str]:
    found = shown_comparison(row)
    return [*found[:4], _p(row["exact_p_holm"]), *found[4:], _p(row["presented_p_holm"])]


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
