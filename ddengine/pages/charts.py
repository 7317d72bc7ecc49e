"""The figures of a page as SVG that lies in it, in its colours and its font."""

import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ddengine.evaluation.tables import interval_of, percent, set_of
from ddengine.pages.figures import error_bars
from ddengine.pages.reading import Run
from ddengine.system.visible import visible
from ddengine.types import Json, Row

BINS = 150  # of a long curve; of each its smallest and largest value are drawn
CHARTS = 6  # networks with a chart of their own; with more of them the heat map says it all
FEW = 30  # validations; their points are marked
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
    num_logged: int  # values, before those were left out that are not drawn
    colour: int  # number of SERIES
    dash: str


def legend(runs: Sequence[Run]) -> list[tuple[str, int, str]]:
    """(name, number of the colour, dash) of the runs that logged something."""
    entries = []
    for place, run in enumerate(runs):
        if run.events:
            colour, dash = _look(place)
            entries.append((run.name, colour, dash))
    return entries


def _look(place: int) -> tuple[int, str]:
    """(number of the colour, dash) of the run at a place."""
    round_of_colours, colour = divmod(place, len(SERIES))
    return colour, DASHES[round_of_colours % len(DASHES)]


def _svg(figure: Any, number: int, label: str) -> Any:
    """A figure as markup: its colours and fonts are the page's, its ids are its own."""
    from markupsafe import Markup

    file = io.StringIO()
    nameless = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(file, format="svg", transparent=True, metadata=nameless)
    text = file.getvalue()
    text = visible(text[text.index("<svg") :])
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
    box = "".join(re.findall(r'viewBox="([^"]*)"', text[:tag_end]))
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
    finite = np.isfinite(np.array(values, float))
    xs = np.array(steps)[finite]
    ys = np.array(values)[finite]
    if len(ys) > 2 * BINS:
        kept = {0, len(ys) - 1}
        for part in np.array_split(np.arange(len(ys)), BINS):
            smallest = part[ys[part].argmin()]
            largest = part[ys[part].argmax()]
            kept |= {int(smallest), int(largest)}
        places = sorted(kept)
        xs = xs[places]
        ys = ys[places]
    return xs.tolist(), ys.tolist()


def _logged(run: Run, key: str, place: int) -> Curve:
    """What a run logged under `key` at each step."""
    steps = []
    logged = []
    for event in run.events:
        value = event.get(key)
        if isinstance(value, float | int):
            steps.append(event["step"])
            logged.append(float(value))
    if key == VALIDATION:
        logged = (100 * np.array(logged)).tolist()
    kept_steps, kept_values = thinned(steps, logged)
    colour, dash = _look(place)
    return Curve(kept_steps, kept_values, len(logged), colour, dash)


def curves(runs: Sequence[Run], numbers: Iterator[int]) -> list[Json]:
    """Figures of what the runs logged, for the template; several runs are drawn into one."""
    drawn = []
    for key, title in CURVES:
        lines = []
        for place, run in enumerate(runs):
            lines.append(_logged(run, key, place))
        if _most_logged(lines) > 0:
            drawn.append(_curve_figure(key, title, lines, next(numbers)))
    return drawn


def _most_logged(lines: Sequence[Curve]) -> int:
    """How many values the run logged that logged the most."""
    return max((line.num_logged for line in lines), default=0)


def _curve_figure(key: str, title: str, lines: Sequence[Curve], number: int) -> Json:
    import matplotlib

    caption = f"{title}."
    if _most_logged(lines) > 2 * BINS:
        caption += " Of a long curve the smallest and largest values of each part are drawn."
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure()
        for line in lines:
            axes.plot(
                line.steps,
                line.values,
                color=SERIES[line.colour],
                linestyle=line.dash,
                linewidth=1.3,
                marker=_marker(key, len(line.values)),
                markersize=3,
            )
        if key == "loss":
            _scale(axes, lines)
        axes.set_xlabel("step")
        axes.grid(True, alpha=0.15, linewidth=0.6)
        svg = _svg(figure, number, f"{title} by step")
    return {"svg": svg, "title": title, "caption": caption}


def _marker(key: str, num_points: int) -> str | None:
    """How points are marked: a single one, because a line would not show, and few validations."""
    if num_points == 1 or (num_points < FEW and key == VALIDATION):
        return "o"
    return None


def _scale(axes: Any, lines: Sequence[Curve]) -> None:
    """Make the scale logarithmic where losses are positive and differ much."""
    values = np.concatenate([line.values for line in lines])
    if len(values) == 0 or values.min() <= 0:
        return
    if values.max() <= 30 * values.min():
        return
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(lambda value, _: "")


def bars(run: Run, numbers: Iterator[int]) -> list[Json]:
    """A chart for each network of the evaluation, for the template; none for more than CHARTS."""
    if len(run.models) > CHARTS:
        return []
    return [_bars(run, model, next(numbers)) for model in run.models]


def _bars(run: Run, model: str, number: int) -> Json:
    """The accuracies of all sets on a network with their intervals."""
    import matplotlib

    rows = run.rows_of(model)
    below, above = error_bars(rows)
    names = []
    means = []
    colours = []
    spoken = []
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure(0.65 + 0.27 * len(rows))
        for place, row in enumerate(rows):
            name = row["set"]
            mean = 100 * (row["accuracy_mean"] or 0.0)
            text = percent(row["accuracy_mean"])
            colour = SERIES[7]
            if name == run.result["set"]:
                colour = SERIES[0]
            names.append(_short(set_of(row)))
            means.append(mean)
            colours.append(colour)
            spoken.append(f"{name} {text}")
            axes.text(max(mean + above[place], 0) + 1.5, place, text, va="center")
        places = range(len(rows))
        axes.barh(places, means, color=colours, height=0.62)
        style = {"fmt": "none", "ecolor": INK, "elinewidth": 1.1, "capsize": 2.5}
        axes.errorbar(means, places, xerr=[below, above], **style)
        axes.set_yticks(places, names)
        axes.tick_params(axis="y", length=0)
        axes.invert_yaxis()
        axes.set_xlim(0, 112)
        axes.set_xticks(range(0, 101, 20))
        axes.set_xlabel("test accuracy, %")
        svg = _svg(figure, number, f"Test accuracy in percent on {model}: {'; '.join(spoken)}")
    return {"svg": svg, "title": model, "caption": _caption(run, model, rows)}


def _caption(run: Run, model: str, rows: Sequence[Row]) -> str:
    caption = f"Mean test accuracy{_networks(rows)} {model} on each set; lines are 95 % intervals"
    caption += " of the mean"
    if any(row.get("ci95") for row in rows):
        caption += f" by {interval_of(run.evaluation)}"
    return f"{caption}."


def _networks(rows: Sequence[Row]) -> str:
    """How many networks each row has, where that is the same."""
    counts = {row["n"] for row in rows if "n" in row}
    if len(counts) != 1:
        return ""
    return f" of {counts.pop()} networks"


def _short(name: str) -> str:
    if len(name) <= LONGEST_NAME:
        return name
    return f"{name[: LONGEST_NAME - 1]}…"
