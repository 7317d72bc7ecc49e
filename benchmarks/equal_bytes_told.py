"""What the tables of equal bytes say: rows, what was expected, the frontier, and a picture.

Of runs as `equal_bytes.py` writes them: those of `table.collect`, with the `cell` of each.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import common

from ddengine.evaluation.comparison import spread

Run = dict[str, Any]
PLAIN = "plain"
IN_BYTES = "plain in bytes"  # whose random images are those of 8 bits a value
EXPECTED_GAIN = 0.05  # of a coded set over the plain one of equal bytes, at IPC 1 of 4 bytes
EXPECTED_AT = "ipc1:f32"
CONTROLS = ("random_coded", "herding_coded")
REAL = ("random", "equal_bytes", "herding")
# codecs under a method for which no published figure was found, a codec by the first word of its
# form. Palettes are AutoPalette's, and fewer pixels under distribution matching those of IDC's
# decoder, as TGDD and NCFM have it; both have figures.
NO_FIGURE = {
    "dm": ("quantised", "linba", "speed", "haba"),
    "mtt": ("quantised", "linba", "reduced"),
}
# what comes near to these and was published
NEAR = {
    ("dm", "quantised"): "published are sets of DM that are quantised after their distillation",
    ("mtt", "quantised"): "published are sets of DATM, whose soft labels are learned, that are "
    "quantised after their distillation or learned in another quantiser",
    ("mtt", "linba"): "published are bases that are learned through training",
    ("dm", "linba"): "published are bases that are learned through training",
}
COLUMNS = ("set", "images", "bytes", "of them labels", "accuracy % (95 % interval)", "n")


@dataclass(frozen=True, kw_only=True)
class Point:
    """A set of a table: what it is, what it takes, what networks on it reach."""

    method: str
    budget: str
    form: str
    kind: str  # distilled, a control of its codec, or a baseline of real images
    images: int  # that networks see, of all classes
    num_bytes: int
    label_bytes: int
    mean: float  # accuracy, a fraction
    ci95: tuple[float, float]
    distillations: int
    networks: int  # of each
    diverged: int  # of all of them

    @property
    def group(self) -> str:
        """Method and budget, within which sets are compared."""
        return _group(self.method, self.budget)

    @property
    def low(self) -> float:
        """The lower end of the interval."""
        return self.ci95[0]

    @property
    def high(self) -> float:
        """The upper end of the interval."""
        return self.ci95[1]


def points(runs: Sequence[Run], kinds: Sequence[str] = ("distilled",)) -> list[Point]:
    """The sets of some kinds, each once: of several distillations their mean, also in bytes.

    The interval of several distillations is Student's t of their means, of one that of its
    networks. Sets of which all networks of a distillation diverged have no point.
    """
    made = []
    for (method, budget, form, kind), of_place in _rows(runs, kinds).items():
        if any(row["accuracy_mean"] is None for row in of_place):
            continue
        told = spread([row["accuracies"] for row in of_place])
        mean = told["accuracy_mean"]
        low, high = told["ci95"] or (mean, mean)
        made.append(
            Point(
                method=method, budget=budget, form=form, kind=kind,
                images=round(fmean(row["images"] for row in of_place)),
                num_bytes=round(fmean(row["bytes"] for row in of_place)),
                label_bytes=round(fmean(row["ledger"]["labels"] for row in of_place)),
                mean=mean, ci95=(low, high), distillations=told["num_distillations"],
                networks=_networks(of_place), diverged=_diverged(of_place),
            )
        )  # fmt: skip
    return made


def _rows(runs: Sequence[Run], kinds: Sequence[str]) -> dict[tuple[str, ...], list[dict[str, Any]]]:
    """Rows of evaluations by method, budget, form and kind: one of each distillation."""
    rows: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for run in runs:
        cell = run["cell"]
        for row in run["evaluation"]["rows"]:
            if row["set"] in kinds:
                place = (cell["method"], cell["budget"], cell["form"], row["set"])
                rows.setdefault(place, []).append(row)
    return rows


def _networks(rows: Sequence[dict[str, Any]]) -> int:
    """The networks that were trained on each set, at least."""
    return min(len(row["accuracies"]) for row in rows)


def _diverged(rows: Sequence[dict[str, Any]]) -> int:
    """The networks that diverged."""
    return sum(network["accuracy"] is None for row in rows for network in row["accuracies"])


def _group(method: str, budget: str) -> str:
    """What sets are called that are compared."""
    return f"{method.upper()}, {budget}"


def frontier(of: Sequence[Point]) -> list[Point]:
    """The points that no other beats at as many bytes or fewer, by ascending bytes."""
    kept: list[Point] = []
    for point in sorted(of, key=lambda point: (point.num_bytes, -point.mean)):
        if not kept or point.mean > kept[-1].mean:
            kept.append(point)
    return kept


def text(runs: Sequence[Run], of: int, notes: Sequence[str] = ()) -> str:
    """The table of each method and budget, what was expected, and whether it came true.

    `of` is how many rows the whole table has; `notes` are sentences on how it was made.
    """
    distilled, controls = points(runs), points(runs, ("random_coded", "random"))
    lines = [f"{len(runs)} of {of} distillations are done.", ""] if len(runs) < of else []
    lines += [f"{note}\n" for note in notes]
    cells = [run["cell"] for run in runs]
    for group in dict.fromkeys(_group(cell["method"], cell["budget"]) for cell in cells):
        lines += [f"**{group}**", "", *_table(group, runs), ""]
        lines += [f"- {line}" for line in expectations(group, distilled, controls)]
        lines.append("")
    lines += [f"{line}\n" for line in crosses(distilled, controls)]
    named = [f"{point.form} ({point.group})" for point in frontier(distilled)]
    if named:
        lines += [f"On the frontier of accuracy against bytes: {', '.join(named)}.", ""]
    return "\n".join(lines)


def _table(group: str, runs: Sequence[Run]) -> list[str]:
    """Sets of a group, the best first, each with its controls; then real images."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|" + " --- |" * len(COLUMNS)]
    controls = _of_group(group, points(runs, CONTROLS))
    for point in sorted(_of_group(group, points(runs)), key=lambda point: -point.mean):
        lines.append(_line(point.form, point))
        for control in controls:
            if control.form == point.form:
                lines.append(_line(f"{control.kind} of {point.form}", control))
    for point in _of_group(group, points(runs, REAL)):
        if point.form in (PLAIN, IN_BYTES):
            lines.append(_line(f"{point.kind}, beside {point.form}", point))
    return lines + _without_point(group, runs)


def _without_point(group: str, runs: Sequence[Run]) -> list[str]:
    """Lines of sets of a group of which all networks of a distillation diverged."""
    lines = []
    for (method, budget, form, kind), rows in _rows(runs, ("distilled", *CONTROLS)).items():
        if _group(method, budget) != group or all(row["accuracy_mean"] is not None for row in rows):
            continue
        name = form if kind == "distilled" else f"{kind} of {form}"
        first = rows[0]
        counted = _counted(len(rows), _networks(rows), _diverged(rows))
        labels = first["ledger"]["labels"]
        lines.append(_cells(name, first["images"], first["bytes"], labels, "diverged", counted))
    return lines


def _of_group(group: str, of: Sequence[Point]) -> list[Point]:
    return [point for point in of if point.group == group]


def _line(name: str, point: Point) -> str:
    return _cells(
        name,
        point.images,
        point.num_bytes,
        point.label_bytes,
        common.shown(point.mean, point.ci95),
        _counted(point.distillations, point.networks, point.diverged),
    )


def _cells(*cells: Any) -> str:
    """A line of a table, its cells those of COLUMNS."""
    return f"| {' | '.join(map(str, cells))} |"


def _counted(distillations: int, networks: int, diverged: int) -> str:
    """How many distillations and networks of each, and how many of these diverged."""
    return f"{distillations} x {networks}" + (f", {diverged} diverged" if diverged else "")


def expectations(group: str, distilled: Sequence[Point], controls: Sequence[Point]) -> list[str]:
    """Sentences on what was expected of a group, with the figures that decide it."""
    of_group = _of_group(group, distilled)
    plain = [point for point in of_group if point.form == PLAIN]
    coded = [point for point in of_group if point.form != PLAIN]
    lines = []
    if plain and coded:
        lines.append(_gain(max(coded, key=lambda point: point.mean), plain[0]))
    beside = {}
    for control in _of_group(group, controls):
        if control.form == IN_BYTES or control.kind == "random_coded":
            beside[control.form] = control
    compared = [(point, beside[point.form]) for point in coded if point.form in beside]
    if compared:
        lines += _beside_controls(compared)
    return lines


def crosses(distilled: Sequence[Point], controls: Sequence[Point]) -> list[str]:
    """For each budget the best pair of codec and method that no published figure was found for."""
    lines = []
    for budget in dict.fromkeys(point.budget for point in distilled):
        new = [point for point in distilled if point.budget == budget and _is_new(point)]
        if not new:
            continue
        best = max(new, key=lambda point: point.mean)
        near = NEAR.get((best.method, _codec(best)))
        lines.append(
            f"Of codecs under a method for which no published figure was found, {best.form} under "
            f"{best.method.upper()} does most at {budget}: {_percent(best.mean)} "
            f"({', '.join(_beside(best, distilled, controls))}){f'; {near}' if near else ''}."
        )
    return lines


def _codec(point: Point) -> str:
    """The first word of its form."""
    return point.form.partition(",")[0]


def _is_new(point: Point) -> bool:
    """Whether no published figure was found for its codec under its method."""
    return _codec(point) in NO_FIGURE.get(point.method, ())


def _beside(best: Point, distilled: Sequence[Point], controls: Sequence[Point]) -> list[str]:
    """What random images in the codec of a set reach, and the plain set beside it."""
    beside = []
    for control in controls:
        same = (control.group, control.form) == (best.group, best.form)
        if same and control.kind == "random_coded":
            beside.append(f"random images in the same codec {_percent(control.mean)}")
    for point in distilled:
        if (point.group, point.form) == (best.group, PLAIN):
            beside.append(f"plain images {_percent(point.mean)}")
    return beside


def _gain(best: Point, plain: Point) -> str:
    """Whether the best coded set is as far above the plain one as was expected."""
    gain = best.mean - plain.mean
    said = (
        f"The best coded set, {best.form}, has {_percent(best.mean)} and the plain one of equal "
        f"bytes {_percent(plain.mean)}: {100 * gain:+.1f} points"
    )
    if best.budget != EXPECTED_AT:
        return f"{said}."
    verdict = "came true" if gain >= EXPECTED_GAIN else "**did not come true**"
    return f"{said}. Expected were {100 * EXPECTED_GAIN:.0f} at least, which {verdict}."


def _beside_controls(compared: Sequence[tuple[Point, Point]]) -> list[str]:
    """Which sets are above random images in their codec by more than both intervals."""
    above = [point.form for point, control in compared if point.low > control.high]
    others = [
        f"{point.form} ({_percent(point.mean)}, random images {_percent(control.mean)})"
        for point, control in compared
        if point.low <= control.high
    ]
    lines = []
    if above:
        names = "; ".join(above)
        lines.append(f"Above random images in the same codec by more than both intervals: {names}.")
    if others:
        names = "; ".join(others)
        lines.append(
            f"**Not above them by more than both intervals**, so that what these gain over plain "
            f"images is the codec's: {names}."
        )
    return lines


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}"


def plot(path: Path, runs: Sequence[Run]) -> None:
    """Accuracy against bytes: a panel for each method, sets, their random images, the frontier.

    None where no set has a point.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    distilled = points(runs)
    if not distilled:
        return
    controls = points(runs, ("random_coded",))
    methods = list(dict.fromkeys(point.method for point in distilled))
    forms = list(dict.fromkeys(point.form for point in distilled))
    figure, axes = pyplot.subplots(
        1, len(methods), figsize=(7 * len(methods), 5), squeeze=False, layout="constrained"
    )
    colours = pyplot.get_cmap("tab20")
    for axis, method in zip(axes[0], methods, strict=True):
        for number, form in enumerate(forms):
            look = {"color": colours(number % 20), "linestyle": "none", "capsize": 2}
            _marks(axis, _chosen(distilled, method, form), marker="o", label=form, **look)
            _marks(axis, _chosen(controls, method, form), marker="x", label=None, **look)
        shown = [point for point in distilled if point.method == method]
        line = frontier(shown)
        most = max(point.num_bytes for point in shown)  # to which the best reaches
        axis.plot(
            [*(point.num_bytes for point in line), most],
            [*(100 * point.mean for point in line), 100 * line[-1].mean],
            color="0.4", linewidth=1, drawstyle="steps-post", label="frontier", zorder=0,
        )  # fmt: skip
        axis.set(
            title=f"{method.upper()} (crosses: random images in the same codec)",
            xlabel="bytes of the set", ylabel="test accuracy, %", xscale="log",
        )  # fmt: skip
        axis.legend(fontsize=7, loc="best")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _chosen(of: Sequence[Point], method: str, form: str) -> list[Point]:
    return [point for point in of if (point.method, point.form) == (method, form)]


def _marks(axis: Any, of: Sequence[Point], **look: Any) -> None:
    """Points with their intervals."""
    if not of:
        return
    below = [100 * (point.mean - point.low) for point in of]
    above = [100 * (point.high - point.mean) for point in of]
    axis.errorbar(
        [point.num_bytes for point in of],
        [100 * point.mean for point in of],
        yerr=[below, above],
        elinewidth=0.7,
        markersize=5,
        **look,
    )
