"""Several evaluations in a table for the terminal, and the bytes of a set in a line."""

from collections.abc import Sequence

from rich.table import Table

from ddengine.evaluation.tables import marked, percent, set_of
from ddengine.sets.synthetic import counted
from ddengine.system.log import size
from ddengine.types import Evaluation


def cross_table(evaluations: Sequence[tuple[str, Evaluation]]) -> Table:
    """The mean accuracy of every set of several evaluations on every network, in percent.

    Baselines that several evaluations have are shown for each of them.
    """
    models: dict[str, None] = {}  # in the order of the evaluations
    for _, evaluation in evaluations:
        for row in evaluation["rows"]:
            models[row["model"]] = None
    shown = Table(title="test accuracy, %", title_justify="left")
    for head in ("evaluation", "set"):
        shown.add_column(head)
    for model in models:
        shown.add_column(model, justify="right")
    for label, evaluation in evaluations:
        label = marked(label, evaluation)
        for name, accuracies in _by_set(evaluation).items():
            of_models = [accuracies.get(model, "-") for model in models]
            shown.add_row(label, name, *of_models)
            label = ""  # stands beside the first set alone
    return shown


def _by_set(evaluation: Evaluation) -> dict[str, dict[str, str]]:
    """The accuracies of an evaluation in words, by set and network."""
    by_set: dict[str, dict[str, str]] = {}
    for row in evaluation["rows"]:
        of_set = by_set.setdefault(set_of(row), {})
        of_set[row["model"]] = percent(row["accuracy_mean"])
    return by_set


def ledger(sizes: dict[str, int], raw: int, dataset: int) -> str:
    """The bytes of the parts of a set in one line, beside those of the real images.

    `sizes` are the bytes of each part and their "total", `raw` those of the training images in use,
    `dataset` those of the complete training split.
    """
    parts = []
    for part, num in counted(sizes).items():
        if num:
            parts.append(f"{part} {size(num)}")
    total = sizes["total"]
    real = size(raw)
    if dataset != raw:
        real += f", the whole split {size(dataset)}"
    share = f"{100 * total / raw:.3g} % of the training images ({real})"
    return f"stored: {', '.join(parts)}; {size(total)} in all, {share}"
