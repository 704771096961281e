"""The tables that `tiller study` shows: means over tasks, and comparisons between conditions. Importing it is cheap."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from vectors.study.figures import Row


def show_comparisons(rows: list[Row], console: Console) -> None:
    """The comparisons between conditions over all tasks, those of each treatment under its own heading."""
    from rich.table import Table
    from rich.text import Text

    from vectors.study.definition import ModelCase
    from vectors.study.effects import OVERALL
    from vectors.study.report import shown_comparison

    for number in dict.fromkeys(row["treatment"] for row in rows):
        own = [row for row in rows if row["treatment"] == number and row["category"] == OVERALL]
        model, icl = ModelCase(own[0]["model"], own[0]["adapter"]).label, own[0]["icl"]
        title = f"{own[0]['kind']}: {model}{f', {icl} exemplars' if icl else ''}"
        console.print(Text(title, style="bold"))
        table = Table(box=None, pad_edge=False)
        table.add_column("over all tasks")
        for heading in ("before", "after", "effect", "p", "presented", "p"):
            table.add_column(heading, justify="right", no_wrap=True)
        for row in own:
            place = "" if row["variant"] is None else f", {row['variant']}, {row['site']}"
            figures = [text.partition(" [")[0] for text in shown_comparison(row)]  # intervals are in study.md
            table.add_row(*(Text(text) for text in [row["comparison"] + place, *figures]))
        console.print(table)


def show_means(rows: list[Row], console: Console) -> None:
    """Each model, number of exemplars, site and variant under its own heading, within 80 columns."""
    from rich.table import Table
    from rich.text import Text

    from vectors.study.definition import ModelCase
    from vectors.study.report import shown_figures

    has_models = len({(row["model"], row["adapter"]) for row in rows}) > 1
    names = ("model", "adapter", "icl", "site", "variant")
    for model, adapter, icl, site, variant in dict.fromkeys(tuple(row[name] for name in names) for row in rows):
        title = f"{variant}, {site}, {f'{icl} exemplars' if icl else 'no exemplars'}"
        console.print(Text(f"{title}: {ModelCase(model, adapter).label}" if has_models else title, style="bold"))
        table = Table(box=None, pad_edge=False)
        table.add_column("", width=13, no_wrap=True)
        for heading in ("baseline", "effect", "p", "presented", "p", "letters"):
            table.add_column(heading, justify="right", width=9, no_wrap=True)
        for row in rows:
            if tuple(row[name] for name in names) == (model, adapter, icl, site, variant):
                figures = [text.partition(" [")[0] for text in shown_figures(row)]  # intervals are in study.md
                table.add_row(*(Text(text) for text in [row["category"], *figures]))
        console.print(table)
