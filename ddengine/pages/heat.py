"""The accuracies of sets on several networks as a table with colours."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np

from ddengine.evaluation.tables import DIVERGED
from ddengine.pages.words import in_percent, interval
from ddengine.types import Json, Row

BAR = 9  # colours of the bar that explains them


@dataclass(frozen=True)
class Cell:
    """A field of the table, as the template shows it."""

    text: str
    title: str  # shown when the mouse rests on it
    back: str
    ink: str


LOST = Cell(DIVERGED, "all networks diverged", "transparent", "inherit")


def heat_table(rows: Sequence[tuple[str, Row]]) -> Json:
    """The mean accuracies of evaluation rows, each with the name of its line, by network.

    The colours can be told apart by a colour-blind reader, and the numbers on them are legible.
    """
    by_place: dict[str, dict[str, Row]] = {}
    models: dict[str, None] = {}  # in the order of the rows
    for name, row in rows:
        of_name = by_place.setdefault(name, {})
        of_name[row["model"]] = row
        models[row["model"]] = None
    low, high = _extremes(by_place.values())
    lines = []
    for name, of_name in by_place.items():
        cells = [_cell(of_name.get(model), low, high) for model in models]
        lines.append((name, cells))
    bar = []
    for place in np.linspace(0, 1, BAR):
        background, _ = _colours(place)
        bar.append(background)
    return {
        "models": list(models),
        "rows": lines,
        "low": in_percent(low),
        "high": in_percent(high),
        "bar": ", ".join(bar),
    }


def _extremes(lines: Iterable[Mapping[str, Row]]) -> tuple[float, float]:
    """(lowest, highest) mean accuracy of the rows in lines; 0 and 1 where there is none."""
    accuracies = []
    for of_name in lines:
        for row in of_name.values():
            if _is_number(row["accuracy_mean"]):
                accuracies.append(row["accuracy_mean"])
    return min(accuracies, default=0.0), max(accuracies, default=1.0)


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and math.isfinite(value)


def _cell(row: Row | None, low: float, high: float) -> Cell | None:
    """The field of an evaluation row, coloured by where it lies between `low` and `high`."""
    if row is None:
        return None
    accuracy = row["accuracy_mean"]
    if accuracy is None and row.get("diverged"):
        return LOST
    if not _is_number(accuracy):
        return None
    share = 0.5
    if high > low:
        share = (accuracy - low) / (high - low)
    back, ink = _colours(share)
    return Cell(in_percent(accuracy), f"95 % interval {interval(row)}", back, ink)


def _colours(share: float) -> tuple[str, str]:
    """(background, ink) of a value at `share` of the scale; the ink contrasts more than the other.

    Contrast is that of WCAG 2, of the relative luminance of the background.
    """
    import matplotlib

    colour = np.array(matplotlib.colormaps["cividis"](share)[:3])
    red, green, blue = np.round(255 * colour).astype(int)
    luminance = 0.2126 * _linear(red) + 0.7152 * _linear(green) + 0.0722 * _linear(blue)
    contrast_with_black = (luminance + 0.05) / 0.05
    contrast_with_white = 1.05 / (luminance + 0.05)
    ink = "#fff"
    if contrast_with_black > contrast_with_white:
        ink = "#000"
    return f"#{red:02x}{green:02x}{blue:02x}", ink


def _linear(level: int) -> float:
    """The linear intensity of a level of sRGB, 0 to 255."""
    if level <= 10:
        return level / 255 / 12.92
    return ((level / 255 + 0.055) / 1.055) ** 2.4
