"""The JSON report of a probe's training as tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console

from server.cli.training.tables import facts_table, plain_table, read_rows


def show_probe(report: Mapping[str, Any], console: Console) -> None:
    """Show where the classes are told apart, how well on held-out texts, and whether that is worth something."""
    table = plain_table("layer", "site", "fit", "AUC, validation")
    best = sorted(report["places"], key=lambda place: -place["validation"])[:10]
    for place in sorted(best, key=lambda place: (place["site"], place["layer"], place["fit"])):
        table.add_row(str(place["layer"]), place["site"], place["fit"], f"{place['validation']:.3f}")
    console.print(table)
    console.print()
    test, chosen, controls = report["test"], report["chosen"], report["controls"]
    area = test["auc"]
    rows = [
        ("chosen", f"{chosen['fit']}, {chosen['site']} layer {chosen['layer']}, of {chosen['selected_from']} places"),
        ("AUC", f"{area['value']:.3f}  [{area['low']:.3f}, {area['high']:.3f}]  p = {test['p']:.2g}"),
        ("without it", f"length of the text {controls['length']:.3f}, random directions {controls['random']:.3f}"),
        (
            "threshold",
            f"{chosen['threshold']:.3f}: {_percent(test['accuracy'])} right, {_percent(test['sensitivity'])} of the "
            f"positive and {_percent(test['specificity'])} of the negative texts",
        ),
        ("calibration", f"mean distance {test['calibration_error']:.3f}, Brier score {test['brier']:.3f}"),
        *read_rows(report["data"]),
        *(("note", note) for note in report["notes"]),
        ("verdict", f"{'it works' if report['recommended'] else 'not recommended'}: {report['reason']}"),
    ]
    console.print(facts_table(rows))


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
