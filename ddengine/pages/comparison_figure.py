"""A comparison of settings as one figure: accuracy against bytes, images, seconds or a setting."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from ddengine.evaluation.comparison import Comparison, column
from ddengine.pages.comparing import TITLES
from ddengine.pages.figures import error_bars, new_figure, save_figure
from ddengine.pages.words import plain
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
STYLE: dict[str, Any] = {"fmt": "o-", "capsize": 3, "markersize": 4}


def axis_of(comparison: Comparison, wanted: str | None) -> str:
    """What the figure's axis shows: `wanted`, else the first setting that is a number, else ipc.

    Raises UserError for a name of nothing that the rows say.
    """
    if wanted is None:
        for name in comparison.fields:
            if all(_is_number(_place(row, name)) for row in comparison.rows):
                return name
        return "ipc"
    check_axis(wanted, comparison.fields)
    for name in comparison.fields:
        if wanted == comparison.short[name]:
            return name
    return wanted


def check_axis(wanted: str, fields: Iterable[str]) -> None:
    """Raise UserError for an axis that rows with these settings will not have."""
    for name in (*MEASURES, *fields):
        if f".{name}".endswith(f".{wanted}"):
            return
    raise unknown("axis in --x", wanted, [*MEASURES, *fields])


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def draw(path: Path, comparison: Comparison, x: str | None = None) -> None:
    """Draw the mean accuracy of each row with its 95 % interval.

    Rows that differ in nothing but the axis are joined. Rows without a value on the axis are left
    out.
    """
    name = axis_of(comparison, x)
    figure = new_figure(SIZE)
    axis = figure.subplots()
    drawn: list[float] = []
    for label, rows in series(comparison, name).items():
        places, means = [], []
        for row in rows:
            places.append(_place(row, name))
            means.append(100 * row["accuracy_mean"])
        drawn += filter(_is_number, places)
        axis.errorbar(places, means, error_bars(rows), label=label or None, **STYLE)
    if drawn and 0 < min(drawn) * WIDE <= max(drawn):
        axis.set_xscale("log")
    axis.set_xlabel(MEASURES.get(name, TITLES.get(name, name)))
    axis.set_ylabel("test accuracy, %")
    axis.set_title("mean over distillations and networks, 95 % interval", fontsize=8, loc="left")
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.3)
    _, labels = axis.get_legend_handles_labels()
    if labels:
        axis.legend(fontsize=7, frameon=False)
    save_figure(figure, path)


def series(comparison: Comparison, name: str) -> dict[str, list[Row]]:
    """The rows by what tells a line of the figure from another, in the order of the axis."""
    by_label: dict[str, list[Row]] = {}
    for row in comparison.rows:
        if _place(row, name) is not None:
            by_label.setdefault(_label(comparison, row, name), []).append(row)
    for rows in by_label.values():
        if all(_is_number(_place(row, name)) for row in rows):
            rows.sort(key=partial(_place, name=name))
    return by_label


def _place(row: Row, name: str) -> Any:
    """Where a row lies on the axis: a number, or words; None where it does not say it."""
    value = row[name] if name in MEASURES else row["settings"].get(name)
    if value is None or _is_number(value):
        return value
    return plain(value)


def _label(comparison: Comparison, row: Row, name: str) -> str:
    """The settings of a row in words, but for the axis and what the axis stands for.

    Images per class decide bytes and seconds, so points of different ipc are of one line; and the
    name of a recipe ends with them.
    """
    words = []
    if len(set(column(comparison.rows, "model"))) > 1:
        words.append(row["model"])
    for field, value in row["settings"].items():
        text = plain(value)
        if field == "name":
            words.append(text.partition("/")[0] if name in MEASURES else text)
        elif field in comparison.fields and field not in _stood_for(name):
            words.append(f"{comparison.short[field]} {text}")
    return ", ".join(words)


def _stood_for(name: str) -> tuple[str, ...]:
    """The fields that an axis stands for."""
    return (name, "ipc") if name in MEASURES else (name,)
