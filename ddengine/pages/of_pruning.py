"""The picture and the table of prune.json, and the notes below them."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from ddengine.evaluation.tables import interval_of, percent
from ddengine.pages.figures import error_bars, new_figure, save_figure
from ddengine.system.log import size
from ddengine.types import Facts
from ddengine.uses.pruning.config import ALL, RANDOM

COLOURS = ("#9a9a9a", "#d9a441", "#b5533c", "#1b6ca8", "#4b8b5a", "#6b4c9a")
STYLES = ("-", "--", ":")


def table(result: Facts) -> Table:
    """prune.json as a table for the terminal: accuracies with the sample standard deviation."""
    config = result["config"]
    title = (
        f"pruned {result['data']}, {result['model']}, {config['steps']} updates, "
        f"{config['repeats']} repeats"
    )
    shown = Table(title=title, title_justify="left")
    several = len(_teachers(result)) > 1
    heads = ("kept", "images", "stored", "student", *(("teacher",) if several else ()))
    for head in heads:
        shown.add_column(head)
    for head in ("lr", "accuracy %"):
        shown.add_column(head, justify="right")
    for row in result["rows"]:
        teacher = (row["teacher"] or "-",) if several else ()
        shown.add_row(
            row["selection"],
            str(row["images"]),
            size(row["bytes"]),
            student(row),
            *teacher,
            f"{row['lr']:g}",
            _accuracy(row),
        )
    return shown


def _teachers(result: Facts) -> dict[str, list[float | None]]:
    """The test accuracies of each teacher, by repeat."""
    accuracies: dict[str, list[float | None]] = {}
    for facts in result["teachers"]:
        accuracies.setdefault(facts["teacher"], []).append(facts["accuracy"])
    return accuracies


def student(row: Facts) -> str:
    """What a student of a row learns: its loss, and the share of distillation."""
    if row["loss"] == "ce" or row["alpha"] is None:
        return str(row["loss"])
    return f"{row['loss']} {row['alpha']:g}"


def _accuracy(row: Facts) -> str:
    mean = percent(row["accuracy_mean"])
    if row["accuracy_std"] is None:
        return mean
    return f"{mean} ± {100 * row['accuracy_std']:.1f}"


def notes(result: Facts) -> list[str]:
    """What is to be said below the table: teachers, intervals, the claims, what diverged."""
    lines = []
    for name, accuracies in _teachers(result).items():
        said = ", ".join(map(percent, accuracies))
        lines.append(f"teacher {name}, on all {result['images']} training images: {said} %")
    if result["config"]["repeats"] > 1:
        lines.append(f"95 % intervals, in prune.json, are by {interval_of(result)}")
    lines.extend(claims(result))
    for row in result["rows"]:
        if row["diverged"]:
            lines.append(
                f"warning: {row['diverged']} of {result['config']['repeats']} students of "
                f"{row['selection']} ({student(row)}, {row['images']} images) diverged and do not "
                "count"
            )
    return lines


# What the figures say about the published claims.


def claims(result: Facts) -> list[str]:
    """A sentence for each size and claim, with intervals, from the findings of prune.json."""
    told = result["findings"]
    return [*_of_alphas(told["alphas"]), *_of_selections(told["selections"]), *_of_teachers(told)]


def _of_alphas(found: Sequence[Facts]) -> Iterator[str]:
    """The published claim: the best share rises as less is kept."""
    for one in found:
        others = sorted(set(one["level"]) - {one["best"]})
        level = f"; not told apart from it: {_listed(others)}" if others else ""
        yield f"{_kept(one)}: the best share of distillation is {one['best']:g}{level}"
    if len(found) > 1:
        yield f"the best share {_trend(_column(found, 'best').tolist())} (published: it rises)"


def _listed(numbers: Sequence[float]) -> str:
    return ", ".join(f"{number:g}" for number in numbers)


def _kept(one: Facts) -> str:
    """How much is kept, in words."""
    if one["fraction"] == 1:
        return "all images"
    named = f", {one['size']}" if one["size"].startswith("bytes of ") else ""
    return f"{100 * one['fraction']:.2g} % of the images{named}"


def _trend(best: Sequence[float]) -> str:
    """How the best shares go, which stand from the smallest fraction to the largest."""
    steps = [later - earlier for earlier, later in pairwise(best)]
    if min(steps) == max(steps) == 0:
        return "is the same at all fractions"
    if max(steps) <= 0:
        return "never falls as less is kept, and rises somewhere"
    if min(steps) >= 0:
        return "falls as less is kept"
    return "goes up and down with the fraction"


def _of_selections(found: Sequence[Facts]) -> Iterator[str]:
    """The published claim: with distillation random images do as well as chosen ones."""
    for one in found:
        yield (
            f"{_kept(one)}: random less {one['selection']}, the better share of each: "
            f"{difference(one)}"
        )


def _of_teachers(found: Facts) -> Iterator[str]:
    """The published claim: a larger teacher is worse where little is kept."""
    for one in found["teachers"]:
        yield (
            f"{_kept(one)}: teacher {one['teacher']} less the first one, the best share of each: "
            f"{difference(one)}"
        )


def difference(one: Facts) -> str:
    """A paired difference in points, with its interval."""
    if one["difference"] is None:
        return "no pair of networks"
    said = f"{100 * one['difference']:+.1f} points"
    if one["difference_ci95"] is None:
        return f"{said}, without an interval ({one['paired']} repeats)"
    low, high = one["difference_ci95"]
    return f"{said} ({100 * low:+.1f} to {100 * high:+.1f})"


# The picture.


def plot(path: Path, result: Facts) -> None:
    """Draw a PNG: accuracy against the fraction for each share, and the best share against it.

    Of random images; where none were kept at random, accuracy alone, of each selection.
    """
    found = result["findings"]["alphas"]
    figure = new_figure((9.6, 4.0))
    axes: Any = figure.subplots(1, 2 if found else 1, squeeze=False)[0]
    lines = _by_alpha(result) if found else _by_selection(result)
    _draw_accuracies(axes[0], lines, result["config"]["repeats"])
    if found:
        _draw_best(axes[1], found)
    for axis in axes:
        if lines:  # an empty axis has no logarithms
            axis.set_xscale("log")
        axis.set_xlabel(f"fraction of the images kept{', at random' if found else ''}")
        axis.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path)


def _draw_accuracies(axis: Any, lines: Mapping[str, Sequence[Facts]], repeats: int) -> None:
    """A line for each list of rows, under its name, with 95 % intervals."""
    for number, (name, rows) in enumerate(lines.items()):
        axis.errorbar(
            _column(rows, "fraction"),
            100 * _column(rows, "accuracy_mean"),
            error_bars(rows),
            label=name,
            color=COLOURS[number % len(COLOURS)],
            linestyle=STYLES[number // len(COLOURS) % len(STYLES)],
            marker="o",
            capsize=3,
        )
    axis.set_ylabel(f"test accuracy, %, {repeats} networks, 95 % intervals", fontsize=9)
    if lines:
        axis.legend(frameon=False, fontsize=9)


def _column(rows: Sequence[Facts], name: str) -> np.ndarray:
    """The numbers of rows under a name."""
    return np.array([row[name] for row in rows], float)


def _by_alpha(result: Facts) -> dict[str, list[Facts]]:
    """The rows of random images and of all, by share, the smallest fraction first."""
    by_alpha: dict[float, list[Facts]] = {}
    for row in _of_first_teacher(result):
        if row["selection"] in (RANDOM, ALL):
            by_alpha.setdefault(row["alpha"], []).append(row)
    named = {}
    for alpha, rows in sorted(by_alpha.items()):
        named["classes alone" if alpha == 0 else f"share of distillation {alpha:g}"] = rows
    return named


def _by_selection(result: Facts) -> dict[str, list[Facts]]:
    """The rows of each selection and share, the smallest fraction first."""
    lines: dict[str, list[Facts]] = {}
    for row in _of_first_teacher(result):
        lines.setdefault(f"{row['selection']}, {student(row)}", []).append(row)
    return dict(sorted(lines.items()))


def _of_first_teacher(result: Facts) -> list[Facts]:
    """Rows of classes and of plain distillation by the first teacher, by fraction.

    Without those that diverged.
    """
    first = result["teachers"][0]["teacher"]
    chosen = []
    for row in sorted(result["rows"], key=lambda row: row["fraction"]):
        of_first = row["loss"] in ("ce", "kd") and row["teacher"] in (None, first)
        if of_first and row["accuracy_mean"] is not None:
            chosen.append(row)
    return chosen


def _draw_best(axis: Any, found: Sequence[Facts]) -> None:
    """The best share at each fraction; fainter, those that are not told apart from it."""
    for one in found:
        level = one["level"]
        axis.plot([one["fraction"]] * len(level), level, "o", color=COLOURS[0], markersize=5)
    axis.plot(
        _column(found, "fraction"),
        _column(found, "best"),
        "o-",
        color=COLOURS[3],
        label="best",
    )
    axis.plot([], [], "o", color=COLOURS[0], markersize=5, label="not told apart from it")
    axis.set_ylim(-0.05, 1.05)
    axis.set_ylabel("share of distillation", fontsize=9)
    axis.legend(frameon=False, fontsize=9, loc="best")
