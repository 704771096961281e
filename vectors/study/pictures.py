"""The plots of a study, as PNG bytes by file name: effects, comparisons, and gains by layer and scale."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vectors.study.comparisons import treatments_of
from vectors.study.definition import ModelCase, Study
from vectors.study.effects import OVERALL
from vectors.study.figures import Records, Row
from vectors.training.plots import MAX_ROWS, RELATIVE_SCALE_LABEL, SCALE_LABEL, Bar, effects, gain_map

_NAMES = ("model", "adapter", "icl", "site", "variant")
_READINGS = (("", "letter-balanced"), ("presented_", "as presented"))
_COMPARISON_WIDTH = 3.6  # inches, for the names of two conditions and a task


def effect_plots(rows: Sequence[Row], means: Sequence[Row]) -> dict[str, bytes]:
    """A forest plot of the tasks and means for each model, exemplars, site, variant and reading."""
    families = list(dict.fromkeys(_place(row) for row in rows))
    numbers = _numbers(rows)
    plots = {}
    for family in families:
        own = [row for row in (*rows, *means) if _place(row) == family]
        model, adapter, icl, site, variant = family
        for prefix, reading in _READINGS:
            bars = [_bar(row, prefix, _task_of(row)) for row in own if row[f"{prefix}effect"] is not None]
            if bars:
                title = f"{variant}, {site}, {icl} exemplars, {reading}: {ModelCase(model, adapter).label}"
                name = f"effects-{_word(prefix)}-{variant}-{site}-icl{icl}{numbers[model, adapter]}.png"
                plots[name] = effects(title, bars)
    return plots


def comparison_plots(study: Study, records: Records, rows: Sequence[Row], means: Sequence[Row]) -> dict[str, bytes]:
    """A forest plot for each treatment, site, variant and reading: all tasks of a comparison, and their mean."""
    plots = {}
    for number, treatment in enumerate(treatments_of(study, records), 1):
        own = [row for row in (*rows, *means) if row["treatment"] == number]
        for site in study.sites:
            for variant in study.variants:
                shown = [row for row in own if (row["site"], row["variant"]) in ((site, variant), (None, None))]
                order = list(dict.fromkeys(row["comparison"] for row in shown))
                shown.sort(key=lambda row: order.index(row["comparison"]))
                for prefix, reading in _READINGS:
                    bars = [
                        _bar(row, prefix, f"{row['comparison']}, {_task_of(row)}")
                        for row in shown
                        if row[f"{prefix}effect"] is not None
                    ]
                    if bars:
                        name = f"comparisons{number}-{_word(prefix)}-{variant}-{site}.png"
                        title = f"{variant}, {site}, {reading}; {treatment.title}"
                        plots[name] = effects(title, bars[:MAX_ROWS], label_width=_COMPARISON_WIDTH)
    return plots


def grid_plots(study: Study, rows: Sequence[Row]) -> dict[str, bytes]:
    """A heat map for each model, exemplars, site and variant: the mean gain over all tasks and seeds."""
    plots = {}
    overall = [row for row in rows if row["category"] == OVERALL and row["gain"] is not None]
    numbers = _numbers(rows)
    for family in dict.fromkeys(_place(row) for row in overall):
        own = [row for row in overall if _place(row) == family]
        model, adapter, icl, site, variant = family
        title = f"{variant}, {site}, {icl} exemplars: mean validation gain; {ModelCase(model, adapter).label}"
        label = RELATIVE_SCALE_LABEL if study.method.relative_scales else SCALE_LABEL
        name = f"grid-{variant}-{site}-icl{icl}{numbers[model, adapter]}.png"
        plots[name] = gain_map(title, own, scale_label=label)
    return plots


def _place(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in _NAMES)


def _numbers(rows: Sequence[Row]) -> dict[tuple[object, object], str]:
    """What tells the files of several models apart."""
    models = list(dict.fromkeys((row["model"], row["adapter"]) for row in rows))
    return {model: f"-model{number}" if len(models) > 1 else "" for number, model in enumerate(models, 1)}


def _word(prefix: str) -> str:
    return "presented" if prefix else "balanced"


def _task_of(row: Row) -> str:
    return str(row["attribute"]) if "task" in row else f"mean: {row['category']}"


def _bar(row: Row, prefix: str, label: str) -> Bar:
    effect, low, high = (row[f"{prefix}{name}"] for name in ("effect", "low", "high"))
    # Student's interval of few seeds may exceed the possible differences of shares
    return Bar(label, effect, max(-1.0, effect if low is None else low), min(1.0, effect if high is None else high))
