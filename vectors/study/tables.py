"""The files of a study: its tables as JSON and CSV, the report that shows them, and their plots."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence

from vectors.study.choices import chosen_rows, stability_rows, time_rows
from vectors.study.comparisons import comparison_means, comparison_rows
from vectors.study.definition import Study
from vectors.study.effects import effect_rows, mean_rows
from vectors.study.figures import Records, Row
from vectors.study.grids import grid_rows
from vectors.study.pictures import comparison_plots, effect_plots, grid_plots
from vectors.study.report import markdown


def study_files(study: Study, records: Records) -> dict[str, bytes]:
    """The tables by file name: JSON, CSV, Markdown, and plots of the effects and gains (PNG).

    A table without rows has no CSV. Raises `MissingDependency`.
    """
    tables = {
        "effects": effect_rows(study, records),
        "means": mean_rows(study, records),
        "comparisons": comparison_rows(study, records),
        "comparison_means": comparison_means(study, records),
        "grid": grid_rows(study, records),
        "chosen": chosen_rows(study, records),
    }
    whole = {"study": study.to_json(), **tables}
    files = {"study.json": (json.dumps(whole, indent=1, allow_nan=False) + "\n").encode()}
    files |= {f"{name}.csv": _csv(rows) for name, rows in tables.items() if rows}
    shown = tables | {"stability": stability_rows(study, records), "times": time_rows(study, records)}
    files["study.md"] = markdown(study, records, shown).encode()
    files |= effect_plots(tables["effects"], tables["means"])
    files |= comparison_plots(study, records, tables["comparisons"], tables["comparison_means"])
    return files | grid_plots(study, tables["grid"])


def _csv(rows: Sequence[Row]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()
