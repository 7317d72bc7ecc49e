"""The accuracies of one run and of several, as the tables of a page."""

from collections.abc import Mapping, Sequence
from typing import Any

from ddengine.evaluation import settings
from ddengine.evaluation.comparison import compare
from ddengine.evaluation.settings import Evaluated
from ddengine.evaluation.tables import economies, interval_of, marked, percent, set_of
from ddengine.pages import comparing, facts
from ddengine.pages.reading import Run
from ddengine.pages.words import (
    NONE,
    cell,
    cells_of,
    count,
    duration,
    filled,
    in_percent,
    interval,
)
from ddengine.system.log import size
from ddengine.types import Json, Row

BALANCED = "Balanced %"


def accuracies(run: Run) -> Json:
    """Head and rows of the table of accuracies, for the template; empty without an evaluation.

    Columns that no row has are left out.
    """
    if not run.rows:
        return {}
    raw = run.fact("raw_bytes")
    lines = [_columns(row, raw) for row in run.rows]
    head = filled(lines)
    rows = []
    for row, line in zip(run.rows, lines, strict=True):
        shown = {
            "set": set_of(row),
            "model": row["model"],
            "own": row["set"] == run.result["set"],
            "cells": cells_of(line, head),
        }
        rows.append(shown)
    return {
        "head": head,
        "rows": rows,
        "several": len(run.models) > 1,
        "model": run.models[0],
        "interval": interval_of(run.evaluation) if run.has_intervals else "",
        "balanced": BALANCED in head,
        "notes": economies(run.evaluation),
    }


def _columns(row: Row, raw_bytes: int | None) -> dict[str, str]:
    """What a row says, by the title of the column; nothing where it does not say it."""
    share = ""
    if raw_bytes and "bytes" in row:
        share = f"{100 * row['bytes'] / raw_bytes:.3g}"
    return {
        "Accuracy %": percent(row["accuracy_mean"]),
        "95 % interval": interval(row),
        "Std": in_percent(row.get("accuracy_std")),
        BALANCED: cell(row, "balanced_accuracy_mean", percent),
        "n": cell(row, "n"),
        "Diverged": str(row.get("diverged") or ""),
        "Images": cell(row, "images"),
        "Bytes": cell(row, "bytes", size),
        "% of images": share,
        "Optimiser": str(row.get("optimiser", "")),
        "Rate": cell(row, "lr", "{:.4g}".format),
        "Updates": cell(row, "steps"),
        "Examples seen": count(row.get("examples_seen")),
        "Training FLOP": count(row.get("training_flops")),
        "Time": cell(row, "seconds", duration),
    }


def classes(run: Run) -> Json:
    """A line for each class and a column for each row: its mean accuracy, for the template.

    Empty where no row says the accuracy on each class.
    """
    counts = run.evaluation.get("test_images_per_class") or {}
    head = ["Class"]
    if counts:
        head.append("Test images")
    names: dict[str, None] = {}  # in the order of the rows
    columns = []
    for row in run.rows:
        per_class = row.get("per_class")
        if isinstance(per_class, dict):
            head.append(_set_and_network(run, row))
            columns.append(per_class)
            names |= dict.fromkeys(per_class)
    if not columns:
        return {}
    lines = []
    for name in names:
        line = [name]
        if counts:
            line.append(str(counts.get(name, "")))
        for per_class in columns:
            line.append(in_percent(per_class.get(name)) or NONE)
        lines.append(line)
    return {"head": head, "rows": lines}


def _set_and_network(run: Run, row: Row) -> str:
    """The set of a row, and its network where the evaluation has several."""
    if len(run.models) == 1:
        return set_of(row)
    return f"{set_of(row)}, {row['model']}"


def rates_were_chosen(run: Run) -> bool:
    """Whether rates were chosen on a validation split, or nothing is known of it."""
    if not run.recipe:
        return True
    protocol = run.evaluation.get("protocol") or {}
    return bool(run.data.get("validation")) and protocol.get("rate") != "learned"


def comparison(runs: Sequence[Run]) -> Json:
    """Head and rows of the table of runs, for the template; empty columns are left out."""
    lines = list(map(_compared, runs))
    head = filled(lines)
    rows = []
    intervals = set()
    for run, line in zip(runs, lines, strict=True):
        rows.append([run.name, *cells_of(line, head)])
        if run.result.get("ci95"):
            intervals.add(interval_of(run.evaluation))
    by = ""
    if intervals:
        by = "; 95 % intervals by " + " or, of older ones, ".join(sorted(intervals))
    return {"by": by, "head": ["Run", *head], "rows": rows}


def _compared(run: Run) -> dict[str, str]:
    """What the table of runs says of one, by the title of the column."""
    num_bytes, share = facts.bytes_in_all(run)
    took = ""
    seconds = run.distillation.get("wall_seconds", run.distillation.get("seconds"))
    if seconds is not None:
        took = duration(seconds)
    between = ""
    if run.result:
        between = interval(run.result)
    return {
        "Method": facts.method(run),
        "Data": str(run.data.get("name", "")),
        "ipc": facts.images_per_class(run),
        "Seed": facts.seed(run),
        "Network": str(run.result.get("model", "")),
        "Accuracy %": marked(cell(run.result, "accuracy_mean", percent), run.evaluation),
        "95 % interval": between,
        "Bytes": num_bytes,
        "% of images": share,
        "Distillation": took,
    }


def by_setting(runs: Sequence[Run]) -> list[Mapping[str, Any]]:
    """A table of settings over distillations and networks, for the template.

    One for each group of runs that may be compared. A group that is one distillation has none.
    """
    known = [Evaluated(run.name, run.meta, run.evaluation) for run in runs if _is_told(run)]
    tables = []
    for group in settings.groups(known):
        comparison = compare(group)
        if sum(row["num_distillations"] for row in comparison.rows) > 1:
            tables.append(comparing.of_page(comparison))
    return tables


def _is_told(run: Run) -> bool:
    """Whether the files of a run say its setting and the accuracies of its networks."""
    named = bool(run.meta.get("recipe")) and bool(run.data.get("name"))
    return named and any(row.get("accuracies") for row in run.rows)
