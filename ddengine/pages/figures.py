"""Pictures of a run: grids of images, real ones above distilled ones, accuracies as a heat map."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ddengine.data import RealSet
from ddengine.evaluation.tables import DIVERGED, interval_of, marked, percent, set_of
from ddengine.sets.synthetic import SyntheticSet
from ddengine.system import files
from ddengine.types import Evaluation, Row

SHOWN_CLASSES, SHOWN_PER_CLASS = 20, 10
REAL_ROWS = 3  # images per class, at most, above as many distilled ones
BAR_WIDTH = 4.2  # inches of the accuracies beside the images
COLOURS = {"distilled": "#1b6ca8", "full": "#9a9a9a"}
OTHER_COLOUR = "#d9a441"
DPI = 130

# (what stands before the names of its sets, evaluation.json)
Named = tuple[str, dict[str, Any]]


class Thumbnails(NamedTuple):
    """As many distilled images as fit into a picture."""

    images: Tensor  # (classes * per_class, C, H, W) in [0, 1] on the CPU, class by class
    classes: int
    per_class: int


def learned_by_class(syn: SyntheticSet) -> list[Tensor]:
    """Indices of the decoded images of each shown class.

    Real images that the codec keeps as they are show nothing new, and are left out.
    """
    labels = syn.classes[syn.source].cpu()
    num = len(labels)
    natural = syn.codec.natural(syn.tensors)
    if natural >= num:  # nothing else is there to show
        natural = 0
    learned = torch.arange(num) >= natural
    members = []
    for c in range(min(len(syn.class_names), SHOWN_CLASSES)):
        of_class = (labels == c) & learned
        members.append(of_class.nonzero().flatten())
    return members


def _thumbnails(syn: SyntheticSet) -> Thumbnails:
    members = learned_by_class(syn)
    per_class = min(SHOWN_PER_CLASS, *map(len, members))
    index = torch.cat([index[:per_class] for index in members])
    images = syn.pixels(index).clamp(0, 1).cpu()
    return Thumbnails(images, len(members), per_class)


def grid(path: Path, syn: SyntheticSet) -> None:
    """Draw the distilled images as a PNG, one class a column (a row for one image per class)."""
    from ddengine.system.compat import torchvision  # seconds to import, and few commands draw

    images, classes, per_class = _thumbnails(syn)
    zoom = max(1, 64 // images.shape[-1])
    images = torch.nn.functional.interpolate(images, scale_factor=zoom, mode="nearest")
    by_class = torch.arange(classes * per_class).view(classes, per_class)
    line_by_line = by_class.T.flatten()
    with files.replacing(path) as temporary:
        torchvision.utils.save_image(
            images[line_by_line], temporary, nrow=classes, padding=2, pad_value=1.0, format="png"
        )


def new_figure(size: tuple[float, float]) -> Any:
    """Return an empty figure of this width and height in inches.

    It belongs to no window and no backend, so what a notebook draws with is left alone.
    """
    from matplotlib.figure import Figure  # a second to import

    return Figure(figsize=size, layout="constrained")


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure as a PNG."""
    with files.replacing(path) as temporary:
        figure.savefig(temporary, dpi=DPI, format="png")


def show_image(axis: Any, image: Tensor, **settings: Any) -> None:
    """Draw an image (C, H, W) in [0, 1], grey or colour, into an axis without ticks."""
    array = image.permute(1, 2, 0).expand(-1, -1, 3).numpy()
    axis.imshow(array, interpolation="nearest", **settings)
    axis.set_xticks([])
    axis.set_yticks([])


def real_vs_distilled(
    path: Path, real: RealSet, syn: SyntheticSet, evaluation: Evaluation | None
) -> None:
    """Draw one picture of a run: real images above the distilled ones, class by class.

    The accuracies of the first network of an evaluation stand beside them.
    """
    shown = _thumbnails(syn)
    num_rows = min(shown.per_class, REAL_ROWS)
    widths = [1.0 * shown.classes]
    if evaluation:
        widths.append(BAR_WIDTH)
    size = (sum(widths), 2.1 * num_rows + 0.9)
    figure = new_figure(size)
    parts: Any = figure.subfigures(1, len(widths), squeeze=False, width_ratios=widths)[0]
    _draw_classes(parts[0], real, shown, syn.row_names, num_rows)
    if evaluation:
        model = evaluation["rows"][0]["model"]
        rows = [row for row in evaluation["rows"] if row["model"] == model]
        _draw_accuracies(parts[1].subplots(), rows, interval_of(evaluation))
    save_figure(figure, path)


def _draw_classes(
    part: Any, real: RealSet, shown: Thumbnails, names: Sequence[str], num_rows: int
) -> None:
    """Draw `num_rows` rows of real images and as many distilled ones below, a class a column."""
    axes = part.subplots(2 * num_rows, shown.classes, squeeze=False)
    for c in range(shown.classes):
        index = real.members[c][:num_rows].to(real.device)
        of_class = real.stored(index).float().cpu() / 255
        last = len(of_class) - 1
        first_distilled = c * shown.per_class
        for r in range(num_rows):
            show_image(axes[r, c], of_class[min(r, last)])
            show_image(axes[num_rows + r, c], shown.images[first_distilled + r])
        axes[0, c].set_title(names[c], fontsize=9)
    axes[0, 0].set_ylabel("real", fontsize=10)
    axes[num_rows, 0].set_ylabel("distilled", fontsize=10)


def _draw_accuracies(axis: Any, rows: Sequence[Row], interval: str) -> None:
    """Draw the mean accuracies of rows of one network as bars with their intervals."""
    names = []
    means = []
    colours = []
    labels = []
    for row in rows:
        mean = row["accuracy_mean"]
        names.append(set_of(row))
        means.append(100 * (mean or 0.0))
        colours.append(COLOURS.get(row["set"], OTHER_COLOUR))
        labels.append(f" {percent(mean)}")
    bars = axis.barh(names, means, xerr=error_bars(rows), color=colours, capsize=3)
    axis.bar_label(bars, labels=labels, label_type="edge", padding=4)
    axis.invert_yaxis()
    axis.set_xlim(0, 112)
    most = max(row["n"] for row in rows)
    axis.set_xlabel(f"test accuracy, %, n = {most}\n95 % interval by {interval}", fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)


def save_samples(path: Path, real: RealSet) -> None:
    """Write the real images that the report page shows, the first of each of the first classes.

    The safetensors file holds the first 10 training images, by index, of each of the first 20
    classes: "pixels" (M, C, H, W) uint8, class by class, and "labels" (M,) int64; a class with
    fewer images gives all it has.
    """
    members = [members[:SHOWN_PER_CLASS] for members in real.members[:SHOWN_CLASSES]]
    index = torch.cat(members).to(real.device)
    pixels = real.stored(index)
    labels = real.labels.index_select(0, index)
    files.write_tensors(path, {"pixels": pixels, "labels": labels})


def error_bars(rows: Sequence[Row], key: str = "accuracy_mean") -> list[list[float]]:
    """How far the intervals of rows reach below and above their means, in points of percent.

    `key` is that of a row's mean. A row without an interval has 0 and 0.
    """
    below = []
    above = []
    for row in rows:
        if not row.get("ci95"):
            below.append(0.0)
            above.append(0.0)
            continue
        mean = 100 * row[key]
        low, high = row["ci95"]
        below.append(max(0.0, mean - 100 * low))
        above.append(max(0.0, 100 * high - mean))
    return [below, above]


def heat_map(path: Path, evaluations: Sequence[Named]) -> None:
    """Draw the mean accuracy of every set (rows) on every network (columns), in percent.

    Where all networks diverged the picture says so.
    """
    names, models, cells = _accuracies(evaluations)
    is_finite = np.isfinite(cells)
    low, high = 0.0, 100.0
    if is_finite.any():
        low = cells[is_finite].min()
        high = cells[is_finite].max()
    size = (2.5 + 1.1 * len(models), 1.8 + 0.42 * len(names))
    figure = new_figure(size)
    axis = figure.subplots()
    values = np.where(is_finite, cells, np.nan)
    axis.imshow(values, cmap="cividis", aspect="auto", vmin=low, vmax=high)
    axis.set_xticks(range(len(models)), models, rotation=30, ha="right", fontsize=8)
    axis.set_yticks(range(len(names)), names, fontsize=8)
    middle = (low + high) / 2
    for (y, x), value in np.ndenumerate(cells):
        if np.isnan(value):
            continue
        text = f"{value:.1f}"
        if np.isinf(value):
            text = DIVERGED
        colour = "white"
        if value > middle:
            colour = "black"
        axis.text(x, y, text, ha="center", va="center", fontsize=8, color=colour)
    axis.set_title("test accuracy, %", fontsize=9, loc="left")
    save_figure(figure, path)


def _accuracies(evaluations: Sequence[Named]) -> tuple[list[str], list[str], np.ndarray]:
    """(names of the sets, networks, mean accuracies in percent).

    An accuracy is NaN where a set was not evaluated on a network, and infinite where all networks
    diverged.
    """
    accuracies: dict[tuple[str, str], float] = {}
    for label, evaluation in evaluations:
        for row in evaluation["rows"]:
            name = set_of(row)
            if len(evaluations) > 1:
                name = f"{marked(label, evaluation)}: {name}"
            mean = row["accuracy_mean"]
            if mean is None:
                mean = math.inf
            accuracies[name, row["model"]] = 100 * mean
    names = list(dict.fromkeys(name for name, _ in accuracies))
    models = list(dict.fromkeys(model for _, model in accuracies))
    cells = np.full((len(names), len(models)), np.nan)
    for (name, model), accuracy in accuracies.items():
        cells[names.index(name), models.index(model)] = accuracy
    return names, models, cells
