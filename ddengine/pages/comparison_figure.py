"""A comparison of settings as one figure: accuracy against bytes, images, seconds or a setting."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ddengine.evaluation.comparison import Comparison
from ddengine.pages.comparing import TITLES, value_in_words
from ddengine.pages.figures import error_bars, new_figure, save_figure
from ddengine.system.errors import unknown
from ddengine.types import Row

# what every row says, and what an axis calls it
MEASURES = {
    "ipc": "images per class",
    "bytes": "bytes stored",
    "seconds": "seconds of distillation",
}
WIDE = 10  # an axis whose largest value is so many times its smallest is logarithmic
SIZE = (6.4, 4.2)  # inches


def axis_of(comparison: Comparison, wanted: str | None) -> str:
    """What the figure's axis shows: `wanted`, else the first setting that is a number, else ipc.

    Raises UserError for a name of nothing that the rows say.
    """
    if wanted is None:
        return next((name for name in comparison.fields if _is_number(comparison, name)), "ipc")
    by_short = {short: name for name, short in comparison.short.items()}
    name = by_short.get(wanted, wanted)
    if name not in (*MEASURES, *comparison.fields):
        raise unknown("axis in --x", wanted, [*MEASURES, *comparison.fields])
    return name


def _is_number(comparison: Comparison, name: str) -> bool:
    values = [row["settings"][name] for row in comparison.rows]
    return all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)


def draw(path: Path, comparison: Comparison, x: str | None = None) -> None:
    """Draw the mean accuracy of each row with its 95 % interval.

    Rows that differ in nothing but the axis are joined. Rows without a value on the axis are left
    out.
    """
    name = axis_of(comparison, x)
    figure = new_figure(SIZE)
    axis = figure.subplots()
    drawn: list[float] = []
    for label, rows in _series(comparison, name).items():
        places = [_place(row, name) for row in rows]
        means = [100 * row["accuracy_mean"] for row in rows]
        drawn += [place for place in places if isinstance(place, int | float)]
        axis.errorbar(
            places, means, error_bars(rows), fmt="o-", capsize=3, markersize=4, label=label or None
        )
    if drawn and 0 < min(drawn) * WIDE <= max(drawn):
        axis.set_xscale("log")
    axis.set_xlabel(MEASURES.get(name, TITLES.get(name, name)))
    axis.set_ylabel("test accuracy, %")
    axis.set_title("mean over distillations and networks, 95 % interval", fontsize=8, loc="left")
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.3)
    if axis.get_legend_handles_labels()[1]:
        axis.legend(fontsize=7, frameon=False)
    save_figure(figure, path)


def _series(comparison: Comparison, name: str) -> dict[str, list[Row]]:
    """The rows by the settings that are not the axis, in the order of the axis."""
    several = len({row["model"] for row in comparison.rows}) > 1
    series: dict[str, list[Row]] = {}
    for row in comparison.rows:
        if _place(row, name) is not None:
            series.setdefault(_label(comparison, row, name, several), []).append(row)
    for rows in series.values():
        if all(isinstance(_place(row, name), int | float) for row in rows):
            rows.sort(key=lambda row: _place(row, name))
    return series


def _place(row: Row, name: str) -> Any:
    """Where a row lies on the axis: a number, or words; None where it does not say it."""
    value = row[name] if name in MEASURES else row["settings"][name]
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
        return value
    return value_in_words(value)


def _label(comparison: Comparison, row: Row, name: str, several: bool) -> str:
    """The settings of a row in words, but for the axis and what the axis stands for."""
    words = [row["model"]] if several else []
    for field in _others(comparison.fields, name):
        value = value_in_words(row["settings"][field])
        if field == "name":  # the name of a recipe ends with its images per class
            words.append(value.partition("/")[0] if name in MEASURES else value)
        else:
            words.append(f"{comparison.short[field]} {value}")
    return ", ".join(words)


def _others(fields: Sequence[str], name: str) -> list[str]:
    """The fields that tell a line of the figure from another.

    Images per class decide bytes and seconds, so points of different ipc are of one line.
    """
    left_out = (name, "ipc") if name in MEASURES else (name,)
    return [field for field in fields if field not in left_out]
