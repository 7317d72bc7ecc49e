"""The tables of docs/scaling.md, of what `scale.py` measured and of what is predicted.

python benchmarks/scale_page.py [--gpu.flops 6.7e13 --gpu.efficiency 0.4 ...]    # other assumptions
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common
import scale_fits
import scale_predicted
import tyro
from scale_predicted import CELLS, GPUS, Gpu

from ddengine.system import files

PAGE = common.ROOT / "docs" / "scaling.md"
MEASURED = ("<!-- measured -->", "<!-- end of measured -->")
PREDICTED = ("<!-- predicted -->", "<!-- end of predicted -->")
NOT_RUN = "not run"
# axis -> (what grows along it, as this power of what it is measured at)
AXES = {
    "ipc": ("images per class", 1),
    "classes": ("classes", 1),
    "size": ("pixels of an image", 2),
    "inner_steps": ("inner steps", 1),
}
COMBINED = "2 x 2 x 2.25 x 2"  # times what the base case has along the axes
# what is measured -> (what it is called, its unit, that in those of the file)
QUANTITIES = {"seconds": ("time", "s", 1.0), "peak_bytes": ("memory", "MB", 1e-6)}
Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Settings:
    """The results, and what is assumed of GPUs."""

    results: Path = common.RESULTS / "scale-cpu.json"
    gpu: Gpu = Gpu()


def write(results: Path, gpu: Gpu = Gpu()) -> None:
    """Put the tables into the page, between its marks."""
    content = files.read_json(results, "rows") if results.is_file() else {"rows": []}
    text = PAGE.read_text()
    for marks, lines in (
        (MEASURED, measured(content)),
        (PREDICTED, predicted(content["rows"], gpu)),
    ):
        text = _between(text, marks, "\n".join(lines))
    PAGE.write_text(text)


def _between(text: str, marks: tuple[str, str], content: str) -> str:
    before, _, rest = text.partition(marks[0])
    _, _, after = rest.partition(marks[1])
    return f"{before}{marks[0]}\n{content}\n{marks[1]}{after}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Lines of a table of Markdown."""
    for cells in (head, ["---"] * len(head), *rows):
        yield f"| {' | '.join(cells)} |"


# What was measured, and the fits.


def measured(content: Mapping[str, Any]) -> list[str]:
    """The tables of fits and of ranks; where nothing was run, that."""
    rows: Rows = content["rows"]
    if not rows:
        return [f"{NOT_RUN.capitalize()} yet."]
    machine = content["machine"]
    said = f"{machine['device']}, {machine['cores']} cores, commit {content['commit']}"
    head = ("grows", "from, to", "what", "fit", "left out", "held out", "predicted", "measured")
    lines = [f"Measured on {said}.", "", *table((*head, "off by"), _fits(rows)), ""]
    return [*lines, *table(("one step of DM, 2 draws", "s"), _ranks(rows))]


def _fits(rows: Rows) -> list[list[str]]:
    """A line for each axis and quantity."""
    lines = []
    for axis in AXES:
        points = [(_at(row, axis), row) for row in rows if _is_on(row, axis)]
        for quantity in QUANTITIES:
            lines.append(_fit_line(axis, quantity, points))
    experts = [(row["number"], row) for row in rows if row["what"] == "experts"]
    return [*lines, _fit_line("experts", "seconds", experts), _combined(rows)]


def _is_on(row: Mapping[str, Any], axis: str) -> bool:
    return row["what"] == "step" and row["axis"] in (axis, "base")


def _at(row: Mapping[str, Any], axis: str) -> float:
    """Where a point lies on an axis."""
    return row["point"][axis] ** AXES[axis][1]


def _fit_line(axis: str, quantity: str, points: Sequence[tuple[float, Any]]) -> list[str]:
    """The fit to all points but those held out, and what it says of these."""
    what, unit, scale = QUANTITIES[quantity]
    inside = sorted((x, row[quantity] * scale) for x, row in points if not row["held_out"])
    name, _ = AXES.get(axis, (axis, 1))
    if len(inside) < scale_fits.FEWEST:
        return [name, "", what, *[NOT_RUN] * 6]
    fit = scale_fits.best(*zip(*inside, strict=True))
    ends = f"{inside[0][0]:g}, {inside[-1][0]:g}"
    cells = [name, ends, what, _words(fit, unit)]
    cells.append(f"{100 * fit.left_out:.0f} %")
    for x, row in points:
        if row["held_out"]:
            cells += [f"{x:g}", *_compared(fit.at(x), row[quantity] * scale, unit)]
    return cells + [NOT_RUN] * (9 - len(cells))


def _compared(predicted: float, measured: float, unit: str) -> list[str]:
    off = 100 * (predicted / measured - 1)
    return [f"{predicted:.3g} {unit}", f"{measured:.3g} {unit}", f"{off:+.0f} %"]


def _words(fit: scale_fits.Fit, unit: str) -> str:
    """A fit with the errors of its coefficients."""
    if fit.kind == "power":
        return f"{fit.a:.3g} {unit} · x^({fit.b:.2f} ± {fit.b_error:.2f})"
    return f"{fit.a:.3g} + ({fit.b:.3g} ± {fit.b_error:.2g}) x {unit}"


def _combined(rows: Rows) -> list[str]:
    """A point that is large in all, by its operations and what the others made of theirs."""
    steps = [row for row in rows if row["what"] == "step"]
    known = [row for row in steps if not row["held_out"]]
    cells = ["all of them", "", "time", "operations / operations a second", ""]
    for row in steps:
        if row["axis"] == "all" and known:
            speed = scale_fits.rate(
                [one["flops"] for one in known], [one["seconds"] for one in known]
            )
            cells += [COMBINED, *_compared(row["flops"] / speed, row["seconds"], "s")]
    return cells + [NOT_RUN] * (9 - len(cells))


def _ranks(rows: Rows) -> list[list[str]]:
    known = {row["ranks"]: row["seconds"] for row in rows if row["what"] == "ranks"}
    lines = []
    for ranks, words in ((1, "1 rank, one thread"), (2, "2 ranks, one thread each")):
        lines.append([words, f"{known[ranks]:.4f}" if ranks in known else NOT_RUN])
    return lines


# What is predicted.


def passes_of(rows: Rows) -> dict[str, float]:
    """Passes through the network that were counted, by what makes them; none that was not."""
    counted = {}
    for row in rows:
        if row["what"] == "counts":
            counted["gsam" if row["recipe"].startswith("datm/") else "sgd"] = row["passes"]
        if row["what"] == "step" and row["axis"] == "base":
            counted["step"] = row["passes"]
    return counted


def predicted(rows: Rows, gpu: Gpu) -> list[str]:
    """The table of cells; where operations were not counted, that."""
    passes = passes_of(rows)
    if passes.keys() < {"step", "sgd", "gsam"}:
        return [f"{NOT_RUN.capitalize()} yet: operations are counted by `benchmarks/scale.py`."]
    lines = [_assumed(gpu), "", _counted(passes), ""]
    head = ("cell", "recipe", "GPUs", "buffer", "distill", "evaluate", "in all")
    cells = []
    for name, cell in CELLS.items():
        cells += _lines_of(name, cell, passes, gpu)
    return [*lines, *table((*head, "was run"), cells)]


def _lines_of(
    name: str, cell: scale_predicted.Cell, passes: Mapping[str, float], gpu: Gpu
) -> Iterator[list[str]]:
    of = scale_predicted.work(cell, passes)
    for gpus in GPUS:
        days = scale_predicted.days(of, gpu, gpus)
        parts = [_duration(part) for part in (*days.values(), sum(days.values()))]
        first = [f"{name} ({of.total:.1e} FLOP)", f"`{cell.recipe}`"] if gpus == 1 else ["", ""]
        yield [*first, str(gpus), *parts, NOT_RUN]


def _duration(days: float) -> str:
    if days >= 2:
        return f"{days:.1f} d"
    return f"{24 * days:.1f} h" if days * 24 >= 1 else f"{24 * 60 * days:.0f} min"


def _assumed(gpu: Gpu) -> str:
    """What stands behind the predictions, in words."""
    return (
        f"**Predicted, not run.** Assumed: {gpu.name}, {gpu.flops:.3g} operations a second at its "
        f"peak, of which {100 * gpu.efficiency:.0f} % are reached; {1000 * gpu.overhead:g} ms of "
        f"each outer step beside them; machines of {gpu.per_node} GPUs with "
        f"{gpu.within_node / 1e9:g} GB/s within and {gpu.between_nodes / 1e9:g} GB/s between them, "
        f"{1e6 * gpu.latency:g} µs for an exchange."
    )


def _counted(passes: Mapping[str, float]) -> str:
    return (
        f"Counted: an image of an inner step of trajectory matching, replayed, costs "
        f"{passes['step']:.1f} forward passes; one of an expert's update {passes['sgd']:.1f} by "
        f"SGD and {passes['gsam']:.1f} by GSAM."
    )


def main(settings: Settings) -> None:
    """Write the page."""
    write(settings.results, settings.gpu)


if __name__ == "__main__":
    main(tyro.cli(Settings))
