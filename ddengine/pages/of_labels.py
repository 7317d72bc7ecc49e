"""The picture and the table of labels.json, and the notes below them."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from rich.table import Table

from ddengine.evaluation.tables import interval_of, percent
from ddengine.pages.figures import error_bars, new_figure, save_figure
from ddengine.types import Facts

COLOURS = {
    "rad": "#1b6ca8",
    "uniform": "#d9a441",
    "margin": "#b5533c",
    "entropy": "#4b8b5a",
    "facility": "#6b4c9a",
}


def table(result: Facts) -> Table:
    """labels.json as a table for the terminal: accuracies with the sample standard deviation."""
    config = result["config"]
    title = (
        f"labels bought for {result['model']}: {result['known']} known, then {config['rounds']} "
        f"rounds of {config['points']} of {result['points']} points, {config['repeats']} repeats"
    )
    shown = Table(title=title, title_justify="left")
    for head in ("answers", "rule"):
        shown.add_column(head)
    shown.add_column("wrong %", justify="right")
    shown.add_column("known alone %", justify="right")
    for number in range(1, config["rounds"] + 1):
        shown.add_column(f"round {number} %", justify="right")
    for row in result["rows"]:
        cells = map(_with_deviation, row["rounds"])
        shown.add_row(row["answers"], row["rule"], f"{_wrong(row):.0f}", *cells)
    return shown


def _wrong(row: Facts) -> float:
    """Wrong answers among those that were bought, in percent, the mean over repeats."""
    return 100 * fmean(row["wrong_bought"])


def _with_deviation(statistics: Facts) -> str:
    mean = percent(statistics["mean"])
    if statistics["std"] is None:
        return mean
    return f"{mean} ± {100 * statistics['std']:.1f}"


def notes(result: Facts) -> list[str]:
    """What is to be said below the table: how rad compares, intervals, what diverged."""
    lines = list(compared(result["differences"]))
    if result["config"]["repeats"] > 1:
        lines.append(f"95 % intervals of accuracies, in labels.json, are by {interval_of(result)}")
    for row in result["rows"]:
        diverged = 0
        for one in row["rounds"]:
            diverged += one["diverged"]
        if diverged:
            lines.append(
                f"warning: {diverged} networks of {row['rule']} ({row['answers']}) diverged and do "
                "not count"
            )
    return lines


def compared(differences: Sequence[Facts]) -> list[str]:
    """A sentence for each rule and answerer: rad less that rule after the last round."""
    lines = []
    for one in differences:
        said = f"{one['answers']}: rad less {one['rule']}, after the last round"
        if one["difference"] is None:
            lines.append(f"{said}: no pair of networks")
            continue
        points = f"{100 * one['difference']:+.1f} points"
        if one["difference_ci95"] is not None:
            low, high = one["difference_ci95"]
            points += f" ({100 * low:+.1f} to {100 * high:+.1f})"
        lines.append(f"{said}: {points}")
    return lines


def plot(path: Path, result: Facts) -> None:
    """Draw a PNG: accuracy after the last round against the share of wrong answers, by rule."""
    figure = new_figure((6.4, 4.2))
    axis = figure.subplots()
    by_rule: dict[str, list[Facts]] = {}
    for row in result["rows"]:
        if row["rounds"][-1]["mean"] is not None:
            by_rule.setdefault(row["rule"], []).append(row)
    for rule, rows in by_rule.items():
        last = [row["rounds"][-1] for row in rows]
        axis.errorbar(
            list(map(_wrong, rows)),
            [100 * one["mean"] for one in last],
            error_bars(last, "mean"),
            label=rule,
            color=COLOURS.get(rule),
            marker="o",
            capsize=3,
        )
    repeats = result["config"]["repeats"]
    axis.set_xlabel("wrong answers among those bought, %")
    axis.set_ylabel(f"test accuracy, %, {repeats} repeats, 95 % intervals", fontsize=9)
    axis.set_title(f"{result['rows'][0]['bought']} labels bought", loc="left", fontsize=10)
    axis.legend(frameon=False, fontsize=9)
    axis.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path)
