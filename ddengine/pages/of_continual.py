"""The picture and the table of continual.json, and the notes below them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from ddengine.evaluation import tables
from ddengine.pages import figures
from ddengine.system import files, log
from ddengine.uses.continual import JOINT

COLOURS = {"distilled": "#1b6ca8", "random": "#d9a441", "herding": "#b5533c", JOINT: "#9a9a9a"}


def plot(path: Path, result: Mapping[str, Any]) -> None:
    """A PNG: accuracy after each stage with 95 % intervals, a line a memory."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(6.4, 4.2), layout="constrained")
    seen = np.array(result["classes_seen"], float)
    for i, (name, found) in enumerate(result["memories"].items()):
        means = np.array(
            [
                np.nan if stage["mean"] is None else 100 * stage["mean"]
                for stage in found["accuracy"]
            ]
        )
        errors = figures.error_bars(found["accuracy"], "mean")
        # so that bars do not hide each other
        shift = (
            0.02 * (seen[-1] - seen[0]) / max(1, len(seen) - 1) * (i - len(result["memories"]) / 2)
        )
        style = "--" if name == JOINT else "-"
        of = (
            "all real images"
            if found["images_per_class"] is None
            else f"{found['images_per_class']} per class"
        )
        axis.errorbar(
            seen + shift,
            means,
            errors,
            label=f"{name}, {of}",
            capsize=3,
            marker="o",
            linestyle=style,
            color=COLOURS.get(name),
        )
    axis.set_xticks(seen)
    axis.set_ylim(0, 102)
    axis.set_xlabel("classes seen")
    repeats = result["config"]["repeats"]
    by = f"s,\n95 % interval by {tables.interval_of(result)}" if repeats > 1 else ""
    axis.set_ylabel(f"test accuracy on them, %, {repeats} order{by}", fontsize=9)
    axis.set_title(
        (
            f"memory of {log.size(result['config']['budget'])}, strategy "
            f"{result['config']['strategy']}"
        ),
        loc="left",
        fontsize=10,
    )
    axis.legend(frameon=False, fontsize=9)
    axis.spines[["top", "right"]].set_visible(False)
    with files.replacing(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")
    pyplot.close(figure)


def table(result: Mapping[str, Any]) -> Table:
    """continual.json as a table for the terminal; ± is the sample standard deviation over repeats,
    mean that of all stages.

    Repeats whose network diverged do not count; where none is left, the table says so.
    """

    def percent(found: Mapping[str, Any]) -> str:
        return tables.percent(found["mean"]) + (
            "" if found["std"] is None else f" ± {100 * found['std']:.1f}"
        )

    config = result["config"]
    title = f"class-incremental, {config['stages']} stages, {config['repeats']} orders, {config['strategy']}, {result['model']}"
    shown = Table(title=title, title_justify="left")
    for head in ("memory", "images/class", "stored", "final %", "mean %", "forgetting %"):
        shown.add_column(head, justify="left" if head == "memory" else "right")
    for name, found in result["memories"].items():
        means = [stage["mean"] for stage in found["accuracy"]]
        stages = tables.percent(None if None in means else float(np.mean(means)))
        num = "all" if found["images_per_class"] is None else str(found["images_per_class"])
        shown.add_row(
            name,
            num,
            log.size(found["bytes"]),
            percent(found["final"]),
            stages,
            percent(found["forgetting"]),
        )
    return shown


def notes(result: Mapping[str, Any]) -> list[str]:
    """What is to be said below the table: how the intervals of continual.json are made, and
    networks that diverged.
    """
    repeats, lines = result["config"]["repeats"], []
    if repeats > 1:
        lines.append(
            "95 % intervals, in continual.json and its picture, are of the mean over orders, by "
            f"{tables.interval_of(result)}"
        )
    for name, found in result["memories"].items():
        for stage, entry in enumerate(found["accuracy"]):
            if num := entry.get("diverged"):
                lines.append(
                    f"warning: {num} of {repeats} networks of memory {name} diverged at stage "
                    f"{stage + 1} and do not count"
                )
    return lines
