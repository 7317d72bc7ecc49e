"""Tables for the terminal that say several evaluations, and the bytes of a set in a line."""

from typing import Any

from rich.table import Table

from ddengine.evaluation.tables import percent
from ddengine.system.log import size


def cross_table(evaluations: list[tuple[str, dict[str, Any]]]) -> Table:
    """Of several evaluations the mean accuracy of every set on every network, in percent; what
    baselines say twice is shown for each evaluation.
    """
    models = list(
        dict.fromkeys(row["model"] for _, evaluation in evaluations for row in evaluation["rows"])
    )
    shown = Table(title="test accuracy, %", title_justify="left")
    for head in ("evaluation", "set", *models):
        shown.add_column(head, justify="right" if head in models else "left")
    for label, evaluation in evaluations:
        sets = list(dict.fromkeys(row["set"] for row in evaluation["rows"]))
        for name in sets:
            cells = {
                row["model"]: percent(row["accuracy_mean"])
                for row in evaluation["rows"]
                if row["set"] == name
            }
            shown.add_row(
                label if name == sets[0] else "", name, *(cells.get(model, "-") for model in models)
            )
    return shown


def ledger(sizes: dict[str, int], raw: int, dataset: int) -> str:
    """Bytes of the parts of a set in one line, beside those of the training images in use and of
    the whole training split.
    """
    parts = [
        f"{part} {size(sizes[part])}"
        for part in ("images", "compensators", "labels", "other")
        if sizes[part]
    ]
    whole = f", the whole split {size(dataset)}" if dataset != raw else ""
    return f"stored: {', '.join(parts)}; {size(sizes['total'])} in all, {100 * sizes['total'] / raw:.3g} % of the training images ({size(raw)}{whole})"
