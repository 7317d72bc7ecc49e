"""The rows of an evaluation as a table for the terminal, and what is said below it."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from rich.table import Table

from ddengine.evaluation import intervals
from ddengine.system.log import size

DIVERGED = "diverged"  # in place of the accuracy of networks that all did
# times as many test images in one class as in another: then balanced accuracy is shown
UNEVEN = 1.1
TABLE_WIDTH = 80  # characters of a terminal


def percent(fraction: float | None) -> str:
    """A mean accuracy in percent; that of networks that all diverged in words."""
    return DIVERGED if fraction is None else f"{100 * fraction:.1f}"


def interval_of(content: Mapping[str, Any]) -> str:
    """How the intervals of an evaluation.json, or of another file of results, were computed."""
    return str(content.get("interval", intervals.FORMER))


def sorted_rows(rows: list[dict[str, Any]], by: str) -> list[dict[str, Any]]:
    """Rows of an evaluation by accuracy, or by accuracy per stored byte, the best first.

    Dynamic labels count by the smaller of both ways. Rows without accuracy, of networks that
    diverged, come last.
    """
    if by == "none":
        return rows
    return sorted(rows, key=_per_byte if by == "accuracy_per_byte" else _accuracy, reverse=True)


def _accuracy(row: Mapping[str, Any]) -> float:
    return -1.0 if row["accuracy_mean"] is None else row["accuracy_mean"]


def _per_byte(row: Mapping[str, Any]) -> float:
    return -1.0 if row["accuracy_mean"] is None else row["accuracy_mean"] / row["bytes"]


def uneven(evaluation: Mapping[str, Any]) -> bool:
    """Whether the classes differ in their number of test images.

    Then accuracy and balanced accuracy differ. It is not known of older evaluations.
    """
    counts = (evaluation.get("test_images_per_class") or {}).values()
    return bool(counts) and max(counts) > UNEVEN * min(counts)


def notes(evaluation: Mapping[str, Any]) -> list[str]:
    """What is to be said below the table of an evaluation.

    That is how the intervals are made, networks that diverged, and the set's worst class.
    """
    rows, lines = evaluation["rows"], []
    if any(row.get("ci95") for row in rows):
        lines.append(f"95 % intervals are of the mean over networks, by {interval_of(evaluation)}")
    several = len({row["model"] for row in rows}) > 1
    for row in rows:
        where = f"{row['set']} on {row['model']}" if several else row["set"]
        if num := row.get("diverged"):
            lines.append(
                f"warning: {num} of {num + row['n']} networks trained on {where} diverged and do "
                "not count"
            )
    return [*lines, *_worst_class(evaluation)]


def _worst_class(evaluation: Mapping[str, Any]) -> list[str]:
    """A line on the class that networks trained on the set know least, where that is known."""
    first = evaluation["rows"][0]
    name, accuracy = None, math.inf
    for class_name, share in (first.get("per_class") or {}).items():
        if share is not None and share < accuracy:
            name, accuracy = class_name, share
    if name is None:
        return []
    tested = (evaluation.get("test_images_per_class") or {}).get(name)
    of = "" if tested is None else f" of its {tested} test images"
    where = f"{first['set']} on {first['model']}"
    return [f"worst class of {where}: {name!r}, {percent(accuracy)} %{of}"]


def table(evaluation: dict[str, Any], title: str, sort: str = "none") -> Table:
    """evaluation.json as a table for the terminal, with the columns that 80 characters hold.

    `notes` belong below it.
    """
    rows = sorted_rows(evaluation["rows"], sort)
    models = {row["model"] for row in rows}
    several = len(models) > 1
    cells = {name: list(map(cell, rows)) for name, cell in _columns(evaluation, several).items()}
    # long names leave no room for them
    for name in (
        "time",
        "n",
        "stored" if several else "lr",
        "lr",
        "updates",
        "stored",
        "balanced %",
    ):
        if _width(cells) > TABLE_WIDTH:
            cells.pop(name, None)
    of_model = "" if several else f", {models.pop()}"
    shown = Table(title=f"{title}{of_model}", title_justify="left")
    for name in cells:
        justify = "left" if name in ("set", "network") else "right"
        shown.add_column(name, justify=justify, no_wrap=True)
    for line in zip(*cells.values(), strict=True):
        shown.add_row(*line)
    return shown


def _columns(
    evaluation: Mapping[str, Any], several: bool
) -> dict[str, Callable[[Mapping[str, Any]], str]]:
    """What stands in each column; `several`: there are rows of more than one network."""
    columns: dict[str, Callable[[Mapping[str, Any]], str]] = {"set": lambda row: row["set"]}
    if several:
        columns["network"] = lambda row: row["model"]
    columns["accuracy %"] = _accuracy_in_words
    columns["95 % interval"] = _interval_in_words
    rows = evaluation["rows"]
    if uneven(evaluation) and all("balanced_accuracy_mean" in row for row in rows):
        columns["balanced %"] = lambda row: percent(row["balanced_accuracy_mean"])
    if all("bytes" in row for row in rows):
        columns["stored"] = lambda row: size(row["bytes"])
    columns["lr"] = lambda row: f"{row['lr']:.4g}"
    if not several:
        columns["n"] = lambda row: str(row["n"])
        columns["updates"] = lambda row: str(row["steps"])
        columns["time"] = lambda row: f"{row['seconds']:.0f} s"
    return columns


def _accuracy_in_words(row: Mapping[str, Any]) -> str:
    mean, std = percent(row["accuracy_mean"]), row["accuracy_std"]
    return mean if std is None else f"{mean} ± {100 * std:.1f}"


def _interval_in_words(row: Mapping[str, Any]) -> str:
    if row["ci95"] is None:
        return "-"
    low, high = row["ci95"]
    return f"{100 * low:.1f} to {100 * high:.1f}"


def _width(cells: Mapping[str, list[str]]) -> int:
    """Characters of a line, with the frame."""
    width = 1
    for head, column in cells.items():
        width += max(map(len, [head, *column])) + 3
    return width
