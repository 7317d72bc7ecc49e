"""The rows of an evaluation as a table for the terminal, and what is said below it."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from rich.table import Table

from ddengine import naming
from ddengine.evaluation import cautions, intervals
from ddengine.evaluation.equal_bytes import FORM
from ddengine.system.log import size
from ddengine.types import Evaluation, Facts, Row

DIVERGED = "diverged"  # in place of the accuracy of networks that all did
# times as many test images in one class as in another: then balanced accuracy is shown
UNEVEN = 1.1
TABLE_WIDTH = 80  # characters of a terminal
# columns that long names leave no room for, in the order in which they go, of a table of one
# network and of one of several
FIRST_TO_GO = ("time", "n", "lr", "updates", "stored", "balanced %")
FIRST_TO_GO_OF_SEVERAL = ("stored", "lr", "balanced %")

Cell = Callable[[Row], str]  # what stands in a column, of a row of the evaluation


def percent(fraction: float | None) -> str:
    """A mean accuracy in percent; that of networks that all diverged in words."""
    if fraction is None:
        return DIVERGED
    return f"{100 * fraction:.1f}"


def interval_of(content: Facts) -> str:
    """How the intervals of an evaluation.json, or of another file of results, were computed."""
    return str(content.get("interval", intervals.FORMER))


Sort = Literal["none", "accuracy", "accuracy_per_byte"]  # of rows


def sorted_rows(rows: Sequence[Row], by: Sort) -> Sequence[Row]:
    """Rows of an evaluation by accuracy, or by accuracy per stored byte, the best first.

    Dynamic labels count by the smaller of both ways. Rows without accuracy, of networks that
    diverged, come last.
    """
    if by == "none":
        return rows
    key = _accuracy
    if by == "accuracy_per_byte":
        key = _per_byte
    return sorted(rows, key=key, reverse=True)


def _accuracy(row: Row) -> float:
    """The mean accuracy of a row, a fraction; -1 where all networks diverged."""
    if row["accuracy_mean"] is None:
        return -1.0
    return row["accuracy_mean"]


def _per_byte(row: Row) -> float:
    """The mean accuracy of a row over its stored bytes; -1 where all networks diverged."""
    if row["accuracy_mean"] is None:
        return -1.0
    return row["accuracy_mean"] / row["bytes"]


def uneven(evaluation: Evaluation) -> bool:
    """Whether the classes differ in their number of test images.

    Then accuracy and balanced accuracy differ. It is not known of older evaluations.
    """
    test_images = evaluation.get("test_images_per_class")
    if not test_images:
        return False
    counts = test_images.values()
    return max(counts) > UNEVEN * min(counts)


def marked(name: str, evaluation: Evaluation) -> str:
    """What an evaluation is called: a quick one says that it is."""
    return f"{name} (quick)" if evaluation.get("quick") else name


def cut_rows(rows: Sequence[Row]) -> list[Row]:
    """Rows whose updates were cut to what a measured time allowed."""
    return [row for row in rows if (row.get("cut") or {}).get("by") == "time"]


def set_of(row: Row) -> str:
    """What the set of a row is called: one that was cut for want of time says that it was."""
    return f"{row['set']} (cut)" if cut_rows([row]) else row["set"]


def notes(evaluation: Evaluation) -> list[str]:
    """What is to be said below the table of an evaluation.

    That is how the intervals are made, which networks are those of libraries, networks that
    diverged, and the set's worst class.
    """
    rows = evaluation["rows"]
    lines = []
    if any(row.get("ci95") for row in rows):
        lines.append(f"95 % intervals are of the mean over networks, by {interval_of(evaluation)}")
    if evaluation.get("judged_by"):
        lines.append(
            f"{rows[0]['set']}: networks are fitted to the features of the set, and its accuracy "
            f"is that of a {evaluation['judged_by']} of what lies before their last layer, on the "
            "labelled training images"
        )
    lines += networks_in_words(rows)
    lines += _brought(evaluation)
    several = len(_models(rows)) > 1
    for row in rows:
        num = row.get("diverged")
        if not num:
            continue
        where = set_of(row)
        if several:
            where += f" on {row['model']}"
        lines.append(
            f"warning: {num} of {num + row['n']} networks trained on {where} diverged and do "
            "not count"
        )
    for caution in cautions.below_random(evaluation):
        lines.append(
            f"warning: in {caution.model} {caution.form} {caution.verdict}: {caution.words}"
        )
    lines += _worst_class(evaluation)
    return lines + economies(evaluation)


def economies(evaluation: Evaluation) -> list[str]:
    """What was not done, or not here, and what the rows that this is about are good for."""
    rows = evaluation["rows"]
    lines = []
    for row in rows:
        if row["set"] == "equal_bytes":
            lines.append(
                f"equal_bytes: the {row['images']} random images, at {FORM}, that the bytes of the "
                f"set hold (on {row['model']})"
            )
            break
    for row in cut_rows(rows):
        cut = row["cut"]
        lines.append(
            f"{row['set']} on {row['model']} was cut to {cut['updates']} of {cut['of']} updates "
            "for want of time, so it is no bound, and nothing is said relative to it; "
            "--full_seconds gives it more"
        )
    looking = [row["set"] for row in rows if row.get("looked_cut")]
    if looking:
        names = ", ".join(dict.fromkeys(looking))
        lines.append(f"{names}: chosen or labelled by a network whose updates were cut so, too")
    if evaluation.get("quick"):
        bound = ""
        if evaluation.get("quick_seconds"):
            seconds = f"{evaluation['quick_seconds']:g}"
            bound = f", and no more than {seconds} s of training allow a row on a network"
        lines.append(f"{cautions.QUICK}{bound}; not to be compared with other evaluations")
    remembered = [row["set"] for row in rows if row.get("remembered")]
    if remembered:
        names = ", ".join(dict.fromkeys(remembered))
        lines.append(f"remembered from an earlier evaluation: {names}")
    return lines


def networks_in_words(rows: Sequence[Row]) -> list[str]:
    """A line on each network of a library that rows are of, in their order."""
    lines = []
    for model in dict.fromkeys(str(row["model"]) for row in rows):
        explanation = naming.explained(model)
        if explanation is not None:
            lines.append(f"{model}: {explanation}")
    return lines


def _brought(evaluation: Evaluation) -> list[str]:
    """A line on each network of the user that a digest tells."""
    lines = []
    for what, stable in (evaluation.get("brought") or {}).items():
        kind, _, name = what.partition(" ")
        if kind == "network" and stable is not None:
            function, _, digest = stable.partition("@")
            lines.append(f"{name}: {function} of a file with the digest {digest}")
    return lines


def _models(rows: Sequence[Row]) -> set[str]:
    """The networks that rows are of, by name."""
    return {row["model"] for row in rows}


def _worst_class(evaluation: Evaluation) -> list[str]:
    """A line on the class that networks trained on the set know least, where that is known."""
    first = evaluation["rows"][0]
    worst = None
    lowest = math.inf
    per_class = first.get("per_class") or {}
    for name, accuracy in per_class.items():
        if accuracy is not None and accuracy < lowest:
            worst = name
            lowest = accuracy
    if worst is None:
        return []
    where = f"{first['set']} on {first['model']}"
    line = f"worst class of {where}: {worst!r}, {percent(lowest)} %"
    test_images = evaluation.get("test_images_per_class") or {}
    if test_images.get(worst) is not None:
        line += f" of its {test_images[worst]} test images"
    return [line]


def table(evaluation: Evaluation, title: str, sort: Sort = "none") -> Table:
    """evaluation.json as a table for the terminal, with the columns that 80 characters hold.

    `notes` belong below it.
    """
    rows = sorted_rows(evaluation["rows"], sort)
    models = _models(rows)
    several = len(models) > 1
    cells = {}
    for name, cell in _columns(evaluation, several).items():
        cells[name] = list(map(cell, rows))
    for name in FIRST_TO_GO_OF_SEVERAL if several else FIRST_TO_GO:
        if _width(cells) > TABLE_WIDTH:
            cells.pop(name, None)
    if not several:
        title += f", {models.pop()}"
    shown = Table(title=title, title_justify="left")
    for name in cells:
        justify = "right"
        if name in ("set", "network"):
            justify = "left"
        shown.add_column(name, justify=justify, no_wrap=True)
    for line in zip(*cells.values(), strict=True):
        shown.add_row(*line)
    return shown


def _columns(evaluation: Evaluation, several: bool) -> dict[str, Cell]:
    """What stands in each column; `several`: there are rows of more than one network."""
    columns: dict[str, Cell] = {"set": set_of}
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


def _accuracy_in_words(row: Row) -> str:
    mean = percent(row["accuracy_mean"])
    if row["accuracy_std"] is None:
        return mean
    return f"{mean} ± {100 * row['accuracy_std']:.1f}"


def _interval_in_words(row: Row) -> str:
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
