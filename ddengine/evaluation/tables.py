"""The rows of an evaluation as a table for the terminal, and what is said below it."""

from collections.abc import Mapping
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
    """Rows of an evaluation by accuracy, or by accuracy per stored byte, the best first; dynamic
    labels count by the smaller of both ways.

    Rows without accuracy, of networks that diverged, come last.
    """
    if by == "none":
        return rows

    def merit(row: dict[str, Any]) -> float:
        accuracy = row["accuracy_mean"]
        return (
            -1.0
            if accuracy is None
            else accuracy / (row["bytes"] if by == "accuracy_per_byte" else 1)
        )

    return sorted(rows, key=merit, reverse=True)


def uneven(evaluation: Mapping[str, Any]) -> bool:
    """Whether the classes differ in their number of test images, so that accuracy and balanced
    accuracy do; not known of older evaluations.
    """
    counts = (evaluation.get("test_images_per_class") or {}).values()
    return bool(counts) and max(counts) > UNEVEN * min(counts)


def notes(evaluation: Mapping[str, Any]) -> list[str]:
    """What is to be said below the table of an evaluation: how the intervals are made, networks
    that diverged, the set's worst class.
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
    own = rows[0]
    known = {
        name: share for name, share in (own.get("per_class") or {}).items() if share is not None
    }
    if known:
        name = min(known, key=lambda name: known[name])
        tested = (evaluation.get("test_images_per_class") or {}).get(name)
        of = f" of its {tested} test images" if tested is not None else ""
        lines.append(
            f"worst class of {own['set']} on {own['model']}: {name!r}, {percent(known[name])} %{of}"
        )
    return lines


def table(evaluation: dict[str, Any], title: str, sort: str = "none") -> Table:
    """evaluation.json as a table for the terminal, with the columns that 80 characters have room
    for; `notes` belong below it.
    """
    rows = sorted_rows(evaluation["rows"], sort)
    models = {row["model"] for row in rows}
    balanced = uneven(evaluation) and all("balanced_accuracy_mean" in row for row in rows)
    cells = {
        "set": [row["set"] for row in rows],
        "network": [row["model"] for row in rows],
        "accuracy %": [
            percent(row["accuracy_mean"])
            + ("" if row["accuracy_std"] is None else f" ± {100 * row['accuracy_std']:.1f}")
            for row in rows
        ],
        "95 % interval": [
            "-"
            if row["ci95"] is None
            else f"{100 * row['ci95'][0]:.1f} to {100 * row['ci95'][1]:.1f}"
            for row in rows
        ],
        **(
            {"balanced %": [percent(row["balanced_accuracy_mean"]) for row in rows]}
            if balanced
            else {}
        ),
        **(
            {"stored": [size(row["bytes"]) for row in rows]}
            if all("bytes" in row for row in rows)
            else {}
        ),
        "lr": [f"{row['lr']:.4g}" for row in rows],
        "n": [str(row["n"]) for row in rows],
        "updates": [str(row["steps"]) for row in rows],
        "time": [f"{row['seconds']:.0f} s" for row in rows],
    }
    several = len(models) > 1
    for name in ("n", "updates", "time") if several else ("network",):
        del cells[name]
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
        if (
            sum(max(map(len, [head, *column])) + 3 for head, column in cells.items()) + 1
            > TABLE_WIDTH
        ):
            cells.pop(name, None)
    shown = Table(title=title + ("" if several else f", {models.pop()}"), title_justify="left")
    for name in cells:
        shown.add_column(
            name, justify="left" if name in ("set", "network") else "right", no_wrap=True
        )
    for row_cells in zip(*cells.values(), strict=True):
        shown.add_row(*row_cells)
    return shown
