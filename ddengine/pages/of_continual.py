"""The picture and the table of continual.json, and the notes below them."""

from pathlib import Path

import numpy as np
from rich.table import Table

from ddengine.evaluation.tables import interval_of, percent
from ddengine.pages.figures import error_bars, new_figure, save_figure
from ddengine.system.log import size
from ddengine.types import Facts
from ddengine.uses.continual import JOINT

COLOURS = {"distilled": "#1b6ca8", "random": "#d9a441", "herding": "#b5533c", JOINT: "#9a9a9a"}
SPREAD = 0.02  # of the axis by which the points of a stage lie apart, so that bars stay visible


def plot(path: Path, result: Facts) -> None:
    """Draw a PNG: accuracy after each stage with 95 % intervals, a line for each memory."""
    figure = new_figure((6.4, 4.2))
    axis = figure.subplots()
    seen = np.array(result["classes_seen"], float)
    memories, config = result["memories"], result["config"]
    step = SPREAD * (seen[-1] - seen[0]) / max(1, len(seen) - 1)
    for i, (name, memory) in enumerate(memories.items()):
        axis.errorbar(
            seen + step * (i - len(memories) / 2),
            100 * _means(memory),
            error_bars(memory["accuracy"], "mean"),
            label=f"{name}, {_images(memory)}",
            capsize=3,
            marker="o",
            linestyle="--" if name == JOINT else "-",
            color=COLOURS.get(name),
        )
    axis.set_xticks(seen)
    axis.set_ylim(0, 102)
    axis.set_xlabel("classes seen")
    orders = f"{config['repeats']} order"
    if config["repeats"] > 1:
        orders += f"s,\n95 % interval by {interval_of(result)}"
    axis.set_ylabel(f"test accuracy on them, %, {orders}", fontsize=9)
    title = f"memory of {size(config['budget'])}, strategy {config['strategy']}"
    axis.set_title(title, loc="left", fontsize=10)
    axis.legend(frameon=False, fontsize=9)
    axis.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path)


def _images(memory: Facts) -> str:
    if memory["images_per_class"] is None:
        return "all real images"
    return f"{memory['images_per_class']} per class"


def table(result: Facts) -> Table:
    """continual.json as a table for the terminal.

    The mean is that of all stages, ± the sample standard deviation over repeats. Repeats whose
    network diverged do not count; where none is left, the table says so.
    """
    config = result["config"]
    title = (
        f"class-incremental, {config['stages']} stages, {config['repeats']} orders, "
        f"{config['strategy']}, {result['model']}"
    )
    shown = Table(title=title, title_justify="left")
    shown.add_column("memory")
    for head in ("images/class", "stored", "final %", "mean %", "forgetting %"):
        shown.add_column(head, justify="right")
    for name, memory in result["memories"].items():
        shown.add_row(
            name,
            str(memory["images_per_class"] or "all"),
            size(memory["bytes"]),
            _with_deviation(memory["final"]),
            percent(_mean_of_stages(memory)),
            _with_deviation(memory["forgetting"]),
        )
    return shown


def _with_deviation(statistics: Facts) -> str:
    mean = percent(statistics["mean"])
    if statistics["std"] is None:
        return mean
    return f"{mean} ± {100 * statistics['std']:.1f}"


def _mean_of_stages(memory: Facts) -> float | None:
    """The mean accuracy of all stages, None where one of them has none."""
    mean = float(np.mean(_means(memory)))
    if np.isnan(mean):
        return None
    return mean


def _means(memory: Facts) -> np.ndarray:
    """The mean accuracy after each stage, NaN where it has none."""
    return np.array([stage["mean"] for stage in memory["accuracy"]], float)


def notes(result: Facts) -> list[str]:
    """What is to be said below the table: how intervals are made, and networks that diverged."""
    repeats = result["config"]["repeats"]
    lines = []
    if repeats > 1:
        lines.append(
            "95 % intervals, in continual.json and its picture, are of the mean over orders, by "
            f"{interval_of(result)}"
        )
    for name, memory in result["memories"].items():
        for stage, entry in enumerate(memory["accuracy"], start=1):
            num = entry.get("diverged")
            if num:
                lines.append(
                    f"warning: {num} of {repeats} networks of memory {name} diverged at stage "
                    f"{stage} and do not count"
                )
    return lines
