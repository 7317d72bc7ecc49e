"""What the form of a set costs: exact tensors, pixels kept within range, 8 bits.

`outside` reads a set, `summary` a table of runs whose rows are labelled "METHOD, exact" and
"METHOD, bounded", as `table.py forms_small` makes them.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from ddengine import load
from ddengine.artefact.eight_bit import exported

Run = dict[str, Any]
# the row of an evaluation that a form is, and in which run of a method
FORMS = {
    "exact": ("exact", "distilled"),
    "exact, in 8 bits": ("exact", "distilled_8bit"),
    "bounded": ("bounded", "distilled"),
}
PAIRS = (
    ("exact, in 8 bits", "exact"),
    ("bounded", "exact"),
    ("bounded", "exact, in 8 bits"),
    ("exact", "random"),
    ("exact, in 8 bits", "random"),
    ("bounded", "random"),
    ("bounded", "herding"),
)


def outside(run: Path) -> float:
    """The fraction of the pixel values of a set that lie outside 0 to 1."""
    return exported(load(run).set).clamped


def has_norm(model: str) -> bool:
    """Whether a network of these tables has BatchNorm, which their names say."""
    return model.endswith("-bn") or "-bn-" in model


def summary(runs: Sequence[Run]) -> str:
    """Two tables: means over kinds of networks, and paired differences between forms.

    A difference is one number for each method and network, of means over the same networks; its
    interval is Student's t over these numbers.
    """
    accuracies = dict(_accuracies(runs))
    lines = ["| set | without BatchNorm | with BatchNorm | all | values outside 0 to 1, % |"]
    lines.append("| --- | --- | --- | --- | --- |")
    shares = {run["row"]: run["outside"] for run in runs}
    for name in dict.fromkeys(name for name, _ in accuracies):
        of_set = {model: a for (other, model), a in accuracies.items() if other == name}
        without = [a for model, a in of_set.items() if not has_norm(model)]
        with_norm = [a for model, a in of_set.items() if has_norm(model)]
        share = f"{100 * shares[name]:.1f}" if name in shares else "-"
        means = [without, with_norm, [*of_set.values()]]
        lines.append(f"| {name} | {' | '.join(map(_percent, means))} | {share} |")
    lines += [
        "",
        "| difference, points | without BatchNorm | with BatchNorm |",
        "| --- | --- | --- |",
    ]
    for one, other in PAIRS:
        pairs = list(_differences(accuracies, one, other))
        without = [d for model, d in pairs if not has_norm(model)]
        with_norm = [d for model, d in pairs if has_norm(model)]
        lines.append(f"| {one} - {other} | {_difference(without)} | {_difference(with_norm)} |")
    return "\n".join(lines) + "\n"


def _accuracies(runs: Sequence[Run]) -> Iterator[tuple[tuple[str, str], float]]:
    """((set, network), mean accuracy): of forms as "METHOD, form", of baselines by their name."""
    for run in runs:
        method, _, kind = run["row"].partition(", ")
        names = {}
        for form, (of_kind, row_name) in FORMS.items():
            if of_kind == kind:
                names[row_name] = f"{method}, {form}"
        for row in run["evaluation"]["rows"]:
            if row["accuracy_mean"] is not None:
                name = names.get(row["set"], row["set"])
                yield (name, row["model"]), row["accuracy_mean"]


def _differences(
    accuracies: dict[tuple[str, str], float], one: str, other: str
) -> Iterator[tuple[str, float]]:
    """(network, difference) of two forms of each method, or of a form and a baseline."""
    for (name, model), accuracy in accuracies.items():
        method, _, form = name.partition(", ")
        beside = f"{method}, {other}" if other in FORMS else other
        if form == one and (beside, model) in accuracies:
            yield model, accuracy - accuracies[beside, model]


def _percent(values: Sequence[float]) -> str:
    return f"{100 * fmean(values):.1f}" if values else "-"


def _difference(values: Sequence[float]) -> str:
    """Mean and 95 % interval in points."""
    from scipy import stats

    if len(values) < 2:
        return "-"
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    return f"{100 * fmean(values):+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
