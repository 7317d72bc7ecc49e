"""The figures of a page as SVG that lies in it, in its colours and its font."""

import io
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ddengine.evaluation.tables import interval_of, percent
from ddengine.pages.figures import error_bars
from ddengine.pages.reading import Run

BINS = 150  # of a long curve; of each its smallest and largest value are drawn
CHARTS = 6  # networks with a chart of their own; with more of them the heat map says it all
LONGEST_NAME = 24  # characters of the name of a set beside a bar
# stand for currentColor and the page's colours --c0 to --c7
INK, SERIES = "#010203", [f"#0102{i:02x}" for i in range(16, 24)]
DASHES = ("-", "--", ":")
INKED = (
    "text.color",
    "axes.edgecolor",
    "axes.labelcolor",
    "xtick.color",
    "ytick.color",
    "grid.color",
)
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "page",
    "text.parse_math": False,
    "font.size": 9,
    "axes.unicode_minus": True,
    **dict.fromkeys(INKED, INK),
}
VALIDATION = "validation_accuracy"
CURVES = (
    ("loss", "Loss of the distillation"),
    ("lr", "Learned learning rate"),
    (VALIDATION, "Validation accuracy, %"),
)


@dataclass(frozen=True)
class Curve:
    """A line of a figure."""

    steps: list[float]
    values: list[float]  # finite
    thinned: bool  # whether values are left out
    colour: int  # number of SERIES
    dash: str

    @property
    def has_marks(self) -> bool:
        """Whether its points are marked, because a line through one would not show."""
        return len(self.values) == 1


def legend(runs: Sequence[Run]) -> list[tuple[str, int, str]]:
    """(name, number of the colour, dash) of the runs that logged something."""
    entries = [(run.name, *_look(i)) for i, run in enumerate(runs)]
    return [entry for entry, run in zip(entries, runs, strict=True) if run.events]


def _look(place: int) -> tuple[int, str]:
    """(number of the colour, dash) of the run at a place."""
    return place % len(SERIES), DASHES[place // len(SERIES) % len(DASHES)]


def _svg(figure: Any, number: int, label: str) -> Any:
    """A figure as markup: its colours and fonts are the page's, its ids are its own."""
    from markupsafe import Markup

    file = io.StringIO()
    nameless = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(file, format="svg", transparent=True, metadata=nameless)
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\sid="([^"]*)"', rf' id="f{number}-\1"', text)
    text = re.sub(r'(?:xlink:)?href="#', f'href="#f{number}-', text)
    text = re.sub(r"url\(#", f"url(#f{number}-", text)
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text)
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    text = text.replace(INK, "currentColor")
    for i, colour in enumerate(SERIES):
        text = text.replace(colour, f"var(--c{i})")
    tag_end = text.index(">")
    match = re.search(r'viewBox="([^"]*)"', text[:tag_end])
    box = match[1] if match else ""
    words = label.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    return Markup(f'<svg viewBox="{box}" role="img" aria-label="{words}"{text[tag_end:]}')


def _figure(height: float = 2.5) -> tuple[Any, Any]:
    """A figure of 4.4 inches, so that its letters are readable on a telephone, and its axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.4, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def thinned(steps: Sequence[float], values: Sequence[float]) -> tuple[list[float], list[float]]:
    """A curve with at most two points for each of BINS parts, its smallest and its largest value.

    They come in the order of the curve, its ends among them. Values that are not finite go.
    """
    points = [(s, v) for s, v in zip(steps, values, strict=True) if math.isfinite(v)]
    if len(points) > 2 * BINS:
        places = {0, len(points) - 1}
        for part in np.array_split(np.arange(len(points)), BINS):
            inside = [points[i][1] for i in part]
            places |= {int(part[int(np.argmin(inside))]), int(part[int(np.argmax(inside))])}
        points = [points[i] for i in sorted(places)]
    return [s for s, _ in points], [v for _, v in points]


def _logged(run: Run, key: str, place: int) -> Curve:
    """What a run logged under `key` at each step."""
    events = [event for event in run.events if isinstance(event.get(key), float | int)]
    factor = 100 if key == VALIDATION else 1
    logged = [factor * float(event[key]) for event in events]
    steps, values = thinned([event["step"] for event in events], logged)
    colour, dash = _look(place)
    return Curve(steps, values, len(logged) > 2 * BINS, colour, dash)


def curves(runs: Sequence[Run], numbers: Iterator[int]) -> list[dict[str, Any]]:
    """Figures of what the runs logged, for the template; several runs are drawn into one."""
    drawn = []
    for key, title in CURVES:
        lines = [_logged(run, key, place) for place, run in enumerate(runs)]
        if any(_says(run, key) for run in runs):
            drawn.append(_curve_figure(key, title, lines, next(numbers)))
    return drawn


def _says(run: Run, key: str) -> bool:
    return any(isinstance(event.get(key), float | int) for event in run.events)


def _curve_figure(key: str, title: str, lines: Sequence[Curve], number: int) -> dict[str, Any]:
    import matplotlib

    with matplotlib.rc_context(STYLE):
        figure, axes = _figure()
        for line in lines:
            few = key == VALIDATION and len(line.values) < 30
            axes.plot(
                line.steps,
                line.values,
                color=SERIES[line.colour],
                linestyle=line.dash,
                linewidth=1.3,
                marker="o" if few or line.has_marks else None,
                markersize=3,
            )
        values = [value for line in lines for value in line.values]
        if key == "loss" and values and min(values) > 0 and max(values) > 30 * min(values):
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.yaxis.set_minor_formatter(lambda value, _: "")
        axes.set_xlabel("step")
        axes.grid(True, alpha=0.15, linewidth=0.6)
        svg = _svg(figure, number, f"{title} by step")
    caption = f"{title}."
    if any(line.thinned for line in lines):
        caption += " Of a long curve the smallest and largest values of each part are drawn."
    return {"svg": svg, "title": title, "caption": caption}


def bars(run: Run, numbers: Iterator[int]) -> list[dict[str, Any]]:
    """A chart for each network of the evaluation, for the template; none for more than CHARTS."""
    if len(run.models) > CHARTS:
        return []
    return [_bars(run, model, next(numbers)) for model in run.models]


def _bars(run: Run, model: str, number: int) -> dict[str, Any]:
    """The accuracies of all sets on a network with their intervals."""
    import matplotlib

    rows = [row for row in run.rows if row["model"] == model]
    means = [100 * (row["accuracy_mean"] or 0.0) for row in rows]
    texts, errors = [percent(row["accuracy_mean"]) for row in rows], error_bars(rows)
    colours = [SERIES[0] if row["set"] == run.result["set"] else SERIES[7] for row in rows]
    places = range(len(rows))
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure(0.65 + 0.27 * len(rows))
        axes.barh(places, means, color=colours, height=0.62)
        axes.errorbar(
            means, places, xerr=errors, fmt="none", ecolor=INK, elinewidth=1.1, capsize=2.5
        )
        for place, mean in enumerate(means):
            axes.text(max(mean + errors[1][place], 0) + 1.5, place, texts[place], va="center")
        axes.set_yticks(places, [_short(row["set"]) for row in rows])
        axes.tick_params(axis="y", length=0)
        axes.invert_yaxis()
        axes.set_xlim(0, 112)
        axes.set_xticks(range(0, 101, 20))
        axes.set_xlabel("test accuracy, %")
        said = "; ".join(f"{row['set']} {text}" for row, text in zip(rows, texts, strict=True))
        svg = _svg(figure, number, f"Test accuracy in percent on {model}: {said}")
    counts = {row["n"] for row in rows if "n" in row}
    num = f" of {counts.pop()} networks" if len(counts) == 1 else ""
    has_intervals = any(row.get("ci95") for row in rows)
    by = f" by {interval_of(run.evaluation)}" if has_intervals else ""
    caption = (
        f"Mean test accuracy{num} {model} on each set; lines are 95 % intervals of the mean{by}."
    )
    return {"svg": svg, "title": model, "caption": caption}


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"
