"""The JSON report of a training, an evaluation or a sweep as tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

_Report = Mapping[str, Any]


def show_report(report: _Report, console: Console) -> None:
    """Show what was found, how sure it is, and what it costs; for reports of a training or an evaluation."""
    test = report["test"]
    console.print(_comparison(report))
    console.print()
    if baselines := report.get("baselines"):
        console.print(_baselines(baselines))
        console.print()
    if (adaptive := report.get("adaptive")) and adaptive["conditions"]:
        console.print(_adaptive(adaptive))
        console.print()
    rows = []
    if "chosen" in report:
        rows += [("chosen", _chosen(report["chosen"])), ("validation", _validation(report))]
    if race := report.get("race"):
        rows.append(("race", _race(race, report["chosen"]["selected_from"])))
    if adaptive:
        rows.append(("adaptive", f"{adaptive['form']}: {adaptive['reason']}"))
    rows.append(("answers", _changes(test)))
    rows.append(("chance", _over(test["over_chance"], "guessing or one letter for everything")))
    if test["best_text"] is not None:
        rows.append(("texts", _texts(test)))
    if test["letters"] is not None:
        rows.append(("letter bias", _letters(test)))
    if seeds := _seeds(report.get("seeds")):
        rows.append(("seeds", seeds))
    rows += read_rows(report["data"])
    if (kept := report["retention"]["perplexity"]) is not None:
        rows.append(("perplexity", f"of {kept['num_texts']} texts, {kept['texts'].replace('_', ' ')}"))
    rows.append(("time", _time(report)))
    rows += [("note", note) for note in report.get("notes", ())]
    rows.append(("verdict", f"{'it helps' if report['recommended'] else 'not recommended'}: {report['reason']}"))
    console.print(facts_table(rows))


def show_calibration(report: _Report, console: Console) -> None:
    """Show the scales that were tried, and the safe range."""
    found = report["calibration"]
    moved = {row["scale"]: row["kl"] for row in report["divergence"]}
    written = {row["scale"]: row for row in report["fluency"]}
    table = plain_table("scale", "KL, 95th percentile", "perplexity", "distinct pairs", "fluent")
    for scale in sorted({*moved, *written}):
        row = written.get(scale, {})
        cells = (
            f"{scale:.3g}",
            f"{moved[scale]:.2f} nats" if moved.get(scale) is not None else "",
            f"{row['perplexity'] / report['unsteered']['perplexity']:.2f}×" if "perplexity" in row else "",
            _percent(row["distinct"]) if "distinct" in row else "",
            "" if not row else "yes" if row["is_fluent"] else "no",
        )
        table.add_row(*map(Text, cells))
    console.print(table)
    console.print()
    low, high = found["safe_scale"]
    moves = ", ".join("none" if scale is None else f"{scale:.3g}" for scale in found["kl_scale"])
    fluent = ", ".join(f"{scale:g}" for scale in found["fluent_scale"])
    rows = [
        ("safe range", f"{low:g} to {high:g}; the default scale is {report['vector']['default_scale']:g}"),
        (f"{found['kl']:g} nats at", moves),
        ("fluent up to", fluent),
        ("prompts", f"{found['prompts']['count']} of {found['prompts']['name']}"),
    ]
    console.print(facts_table(rows))


def show_sweep(report: _Report, console: Console) -> None:
    """Show the accuracy by the number of training items."""
    table = plain_table("items", "unsteered", "steered", "s.e.", "gain", "p", "layer × scale")
    has_variants = len({point["chosen"]["variant"] for point in report["points"] if "test" in point}) > 1
    failed = []
    for point in report["points"]:
        if "test" not in point:
            failed.append((f"{point['num_items']} items", point["reason"]))
            continue
        failed += [(f"{point['num_items']} items", f"seed {one['seed']}: {one['reason']}") for one in point["failed"]]
        chosen = [f"{each['chosen']['layer']} × {each['chosen']['scale']:g}" for each in point["each"]]
        variants = [f" {each['chosen']['variant']}" if has_variants else "" for each in point["each"]]
        counted = Counter(map("".join, zip(chosen, variants, strict=True))).most_common()
        baseline = sum(each["baseline"] for each in point["each"]) / len(point["each"])
        cells = (
            str(point["num_items"]),
            _percent(baseline),
            *_curve_accuracy(point["accuracy"]),
            *_curve_gain(point),
            ", ".join(f"{cell} ({count})" if len(point["each"]) > 1 else cell for cell, count in counted),
        )
        table.add_row(*map(Text, cells))
    console.print(table)
    console.print()
    rows = [("slope", _slope(report["slope"]))] if report["slope"] is not None else []
    console.print(facts_table([*rows, *failed, *read_rows(report["data"])]))


def _curve_accuracy(found: _Report) -> tuple[str, str]:
    """An accuracy with its interval, and its standard error."""
    if found["standard_error"] is None:
        return _percent(found["value"]), "–"
    return _accuracy(found), f"{100 * found['standard_error']:.1f}"


def _curve_gain(point: _Report) -> tuple[str, str]:
    """The gain with its interval and p: over seeds, or over the items of a single one."""
    if point["gain"] is None:
        return _gain(point["test"]), f"{point['test']['p']:.2g}"
    found = point["gain"]
    return f"{_points(found['mean'])} ({_points(found['low'])}, {_points(found['high'])})", f"{found['p']:.2g}"


def _slope(slope: _Report) -> str:
    per_doubling = f"{100 * slope['per_doubling']:+.2f} points per doubling of the training items"
    parts = [f"{per_doubling}; standard error {100 * slope['standard_error']:.2f} over {slope['num_sizes']} sizes"]
    if slope["low"] is not None:
        parts[0] += f" ({_points(slope['low'])}, {_points(slope['high'])})"
    if (seeds := slope["over_seeds"]) is not None:
        parts.append(
            f"{100 * seeds['standard_error']:.2f} over {len(seeds['each'])} seeds "
            f"({_points(seeds['low'])}, {_points(seeds['high'])})"
        )
    return ", ".join(parts)


def _comparison(report: _Report) -> Table:
    test, retention = report["test"], report["retention"]
    table = plain_table("", "unsteered", "steered", "change")
    table.add_row("test accuracy", _accuracy(report["baseline"]["test"]), _accuracy(test["accuracy"]), _gain(test))
    if test["letters"] is not None:
        shown = test["presented"]
        before, after = _percent(shown["baseline"]), _percent(shown["steered"])
        table.add_row("  in one order", before, after, _points(shown["gain"]))
    if icl := report.get("icl"):
        table.add_row("  without examples", _percent(icl["plain_baseline_test"]))
    if (kept := retention["accuracy"]) is not None:
        before, after = _accuracy(kept["baseline"]), _accuracy(kept["steered"])
        table.add_row("retention", before, after, _points(kept["change"]))
    if (kept := retention["perplexity"]) is not None:
        table.add_row("text perplexity", f"{kept['baseline']:.4g}", f"{kept['steered']:.4g}", f"× {kept['ratio']:.3f}")
    return table


def _baselines(baselines: Sequence[_Report]) -> Table:
    table = plain_table("baseline", "test accuracy", "gain", "the vector over it", "p", "chosen")
    for found in baselines:
        if "reason" in found:
            table.add_row(*map(Text, (found["name"], "not made", "", "", "", found["reason"])))
            continue
        over, chosen = found["vector_over"], found["chosen"]
        if "system_prompt" in chosen:
            what = chosen["system_prompt"][:60]
        elif "exemplars" in chosen:
            what = f"{chosen['exemplars']} solved examples"
        else:
            variant = "" if chosen["variant"] == found["name"] else f"{chosen['variant']}, "
            what = f"{variant}{chosen['site']} layer {chosen['layer']}, scale {chosen['scale']:.4g}"
        cells = (found["name"], _accuracy(found["accuracy"]), _gain(found), _gain(over), f"{over['p']:.2g}", what)
        table.add_row(*map(Text, cells))
    return table


def _adaptive(adaptive: _Report) -> Table:
    table = plain_table("vector", "test accuracy", "gain", "changed elsewhere", "what it is")
    for found in adaptive["conditions"]:
        elsewhere = "" if found["elsewhere"] is None else _accuracy(found["elsewhere"]["changed"])
        names = ("scale", "min", "max", "half_open_at", "sharpness")
        chosen = found.get("chosen", {})
        numbers = ", ".join(f"{name.replace('_', ' ')} {chosen[name]:.3g}" for name in names if name in chosen)
        what = "the best of the search" if found["name"] == "constant" else numbers
        table.add_row(*map(Text, (found["name"], _accuracy(found["accuracy"]), _gain(found), elsewhere, what)))
    table.caption = f"elsewhere: the {adaptive['elsewhere']}"
    table.caption_justify = "left"
    return table


def _chosen(chosen: _Report) -> str:
    layers = ", ".join(map(str, chosen["layers"]))
    grid = "" if chosen["grid_scale"] == chosen["scale"] else f" (relative {chosen['grid_scale']:g})"
    return (
        f"{chosen['variant']}, {chosen['site']} layer {layers}, scale {chosen['scale']:.4g}{grid}; "
        f"dose {chosen['dose']:.3g}, {chosen['relative_dose']:.2g} × the activation's length"
    )


def _validation(report: _Report) -> str:
    chosen = report["chosen"]
    return f"{_percent(report['baseline']['validation'])} → {_percent(chosen['validation'])}, {chosen['selection']}"


def _race(race: _Report, num_cells: int) -> str:
    share = race["answers"] / race["of"]
    return (
        f"left out {race['left_out']} of {num_cells} cells, which could not become the best any more; "
        f"{_percent(share)} of the answers of the whole grid"
    )


def _changes(test: _Report) -> str:
    changed = f"{test['wrong_to_right']} items wrong → right, {test['right_to_wrong']} right → wrong"
    over = "" if test["groups"] is None else f" in {test['groups']} groups"
    return f"{changed}{over}; {test['method']} p = {test['p']:.2g}"


def _over(found: _Report, what: str) -> str:
    return f"{_points(found['gain'])} points over {what}, p = {found['p']:.2g}"


def _texts(test: _Report) -> str:
    best = test["best_text"]
    said = (
        f"{_percent(best['said_before'])} → {_percent(best['said_after'])} of the {best['offered']} items that offer it"
    )
    over = _over(test["over_text"], "answering by the options' texts alone")
    return f"{over}; says {best['answer'][:60]!r}: {said}"


def _letters(test: _Report) -> str:
    moved = ", ".join(
        f"{letter} {_percent(share)} → {_percent(test['letters']['after'][letter])}"
        for letter, share in test["letters"]["before"].items()
    )
    return f"{_points(test['letter_bias'])} points of the gain in one order; answers: {moved}"


def _seeds(seeds: _Report | None) -> str | None:
    if seeds is None:
        return None
    found = seeds["corrected"]
    num_gaining = sum(each["gain"] > 0 for each in seeds["each"])
    if found["p"] is None:
        return f"{found['num_seeds']} splits gain {_points(found['mean'])} each, without variation"
    interval = f"({_points(found['low'])}, {_points(found['high'])})"
    return (
        f"{found['num_seeds']} splits gain {_points(found['mean'])} {interval} on average, {num_gaining} of them gain; "
        f"corrected resampled t = {found['t']:.2f}, p = {found['p']:.2g}"
    )


def read_rows(data: _Report) -> list[tuple[str, str]]:
    """The data, and what its file was taken for."""
    rows = [("data", _data(data))]
    if (read := data.get("read")) is None:
        return rows
    if read.get("format"):
        fields = ", ".join(f"{role} = {name}" for role, name in read["fields"].items())
        rows.append(("read as", f"{read['format']}: {read['shape']}" + (f" ({fields})" if fields else "")))
    if read.get("classes"):
        rows.append(("classes", ", ".join(f"{name}: {count}" for name, count in read["classes"].items())))
    first = "; ".join(
        f"{name}: {' | '.join(value) if isinstance(value, list) else value}"
        for name, value in read["first"].items()
        if value
    )
    rows.append(("first item", first))
    if read.get("skipped"):
        skipped = ", ".join(f"{count} with {reason}" for reason, count in read["skipped"].items())
        rows.append(("left out", f"{sum(read['skipped'].values())} of {read['rows']} rows: {skipped}"))
    return rows + [("note", note) for note in read.get("notes", ())]


def _data(data: _Report) -> str:
    parts = data.get("split")
    split = "" if parts is None else f": {parts['train']} train, {parts['validation']} validation, {parts['test']} test"
    return f"{data['name']}, {data['items']} items{split}"


def _time(report: _Report) -> str:
    seconds = report["seconds"]
    speed = report.get("items_per_second")
    phases = ", ".join(f"{phase} {value:.1f} s" for phase, value in seconds.items())
    return f"{sum(seconds.values()):.1f} s ({phases})" + (f", {speed:.0f} answers per second" if speed else "")


def plain_table(*headings: str) -> Table:
    """A table of cells in one line each, but for the last column."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings[:-1]:
        table.add_column(heading, no_wrap=True)
    table.add_column(headings[-1], overflow="fold")
    return table


def facts_table(rows: Sequence[tuple[str, str]]) -> Table:
    """Names and what is to be said of each."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, Text(value))
    return table


def _accuracy(accuracy: _Report) -> str:
    return f"{_percent(accuracy['value'])} ({100 * accuracy['low']:.1f}–{100 * accuracy['high']:.1f})"


def _gain(test: _Report) -> str:
    low, high = test["ci95"]
    return f"{_points(test['gain'])} ({_points(low)}, {_points(high)})"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _points(share: float) -> str:
    return f"{round(100 * share, 1) + 0.0:+.1f}"  # never -0.0
