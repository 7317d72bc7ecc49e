"""Pictures of a run: grids of images, real ones above distilled ones, accuracies as a heat map."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddengine.data import RealSet
from ddengine.evaluation.tables import DIVERGED, interval_of, percent
from ddengine.sets.synthetic import SyntheticSet
from ddengine.system import files

SHOWN_CLASSES, SHOWN_PER_CLASS = 20, 10


def _thumbnails(syn: SyntheticSet) -> tuple[Tensor, int, int]:
    """(images in class-major order, classes, images per class) of as many as fit a picture."""
    labels = syn.classes[syn.source].cpu()
    classes = list(range(min(len(syn.class_names), SHOWN_CLASSES)))
    # natural images that are kept as they are show nothing new
    learned = torch.arange(len(labels)) >= syn.codec.natural(syn.tensors) % len(labels)
    members = [((labels == c) & learned).nonzero().flatten() for c in classes]
    per_class = min(SHOWN_PER_CLASS, *(len(m) for m in members))
    return (
        syn.pixels(torch.cat([m[:per_class] for m in members])).clamp(0, 1).cpu(),
        len(classes),
        per_class,
    )


def grid(path: Path, syn: SyntheticSet) -> None:
    """The distilled images as a PNG, one class per column (per row for one image per class)."""
    from ddengine.system.compat import (
        torchvision,  # seconds to import, and most commands draw nothing
    )

    images, classes, per_class = _thumbnails(syn)
    zoom = max(1, 64 // images.shape[-1])
    images = torch.nn.functional.interpolate(images, scale_factor=zoom, mode="nearest")
    order = torch.arange(classes * per_class).view(classes, per_class).T.flatten()
    with files.replacing(path) as temporary:
        torchvision.utils.save_image(
            images[order], temporary, nrow=classes, padding=2, pad_value=1.0, format="png"
        )


def real_vs_distilled(
    path: Path, real: RealSet, syn: SyntheticSet, evaluation: dict[str, Any] | None
) -> None:
    """One picture of a run: real images above the distilled ones, class by class, and the
    accuracies beside them.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    images, classes, per_class = _thumbnails(syn)
    rows = min(per_class, 3)
    reals = [
        real.pixels[m[:rows].to(real.device)].float().cpu() / 255 for m in real.members[:classes]
    ]
    bars = (
        [r for r in evaluation["rows"] if r["model"] == evaluation["rows"][0]["model"]]
        if evaluation
        else []
    )
    figure = pyplot.figure(
        figsize=(1.0 * classes + (4.2 if bars else 0), 2.1 * rows + 0.9), layout="constrained"
    )
    parts: Any = figure.subfigures(
        1, 2 if bars else 1, squeeze=False, width_ratios=[classes, 4.2] if bars else None
    )[0]
    axes = parts[0].subplots(2 * rows, classes, squeeze=False)
    for c in range(classes):
        for r in range(rows):
            shown = (reals[c][min(r, len(reals[c]) - 1)], images[c * per_class + r])
            for axis, image in zip((axes[r, c], axes[rows + r, c]), shown, strict=True):
                axis.imshow(
                    image.permute(1, 2, 0).expand(-1, -1, 3).numpy(), interpolation="nearest"
                )
                axis.set_xticks([])
                axis.set_yticks([])
        axes[0, c].set_title(syn.class_names[c], fontsize=9)
    axes[0, 0].set_ylabel("real", fontsize=10)
    axes[rows, 0].set_ylabel("distilled", fontsize=10)
    if bars:
        axis = parts[1].subplots()
        colours = {"distilled": "#1b6ca8", "full": "#9a9a9a"}
        means = [100 * (r["accuracy_mean"] or 0.0) for r in bars]
        names = [r["set"] for r in bars]
        drawn = axis.barh(
            names,
            means,
            xerr=error_bars(bars),
            color=[colours.get(n, "#d9a441") for n in names],
            capsize=3,
        )
        axis.bar_label(
            drawn,
            labels=[f" {percent(r['accuracy_mean'])}" for r in bars],
            label_type="edge",
            padding=4,
        )
        axis.invert_yaxis()
        axis.set_xlim(0, 112)
        axis.set_xlabel(
            (
                f"test accuracy, %, n = {max(r['n'] for r in bars)}\n95 % interval by "
                f"{interval_of(evaluation or {})}"
            ),
            fontsize=8,
        )
        axis.spines[["top", "right"]].set_visible(False)
    with files.replacing(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")
    pyplot.close(figure)


def save_samples(path: Path, real: RealSet) -> None:
    """Write the real images that the report page shows: the first 10 training images, by index, of
    each of the first 20 classes.

    The safetensors file holds "pixels" (M, C, H, W) uint8, class by class, and "labels" (M,) int64;
    a class with fewer images gives all it has.
    """
    index = torch.cat([members[:SHOWN_PER_CLASS] for members in real.members[:SHOWN_CLASSES]]).to(
        real.device
    )
    files.write_tensors(
        path,
        {
            "pixels": real.pixels.index_select(0, index),
            "labels": real.labels.index_select(0, index),
        },
    )


def error_bars(rows: Sequence[Mapping[str, Any]], mean: str = "accuracy_mean") -> list[list[float]]:
    """How far the intervals of rows reach below and above their means, in points of percent; 0
    where a row has none.
    """
    known = [
        (100 * row[mean], 100 * np.array(row["ci95"])) if row.get("ci95") else (0.0, np.zeros(2))
        for row in rows
    ]
    return [
        [max(0.0, middle - float(ends[0])) for middle, ends in known],
        [max(0.0, float(ends[1]) - middle) for middle, ends in known],
    ]


def heat_map(path: Path, evaluations: list[tuple[str, dict[str, Any]]]) -> None:
    """Mean accuracy of every set (rows) on every network (columns) as a picture; where all networks
    diverged it says so.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    models = list(
        dict.fromkeys(row["model"] for _, evaluation in evaluations for row in evaluation["rows"])
    )
    several = len(evaluations) > 1
    named: dict[str, dict[str, float]] = {}
    for label, evaluation in evaluations:
        for row in evaluation["rows"]:
            accuracy = math.inf if row["accuracy_mean"] is None else 100 * row["accuracy_mean"]
            named.setdefault(f"{label}: {row['set']}" if several else row["set"], {})[
                row["model"]
            ] = accuracy
    cells = np.array([[known.get(model, np.nan) for model in models] for known in named.values()])
    values = np.where(np.isfinite(cells), cells, np.nan)
    low, high = (
        (np.nanmin(values), np.nanmax(values)) if np.isfinite(values).any() else (0.0, 100.0)
    )
    figure, axis = pyplot.subplots(
        figsize=(2.5 + 1.1 * len(models), 1.8 + 0.42 * len(named)), layout="constrained"
    )
    axis.imshow(values, cmap="cividis", aspect="auto", vmin=low, vmax=high)
    axis.set_xticks(range(len(models)), models, rotation=30, ha="right", fontsize=8)
    axis.set_yticks(range(len(named)), list(named), fontsize=8)
    middle = (low + high) / 2
    for (y, x), value in np.ndenumerate(cells):
        if np.isinf(value):
            axis.text(x, y, DIVERGED, ha="center", va="center", fontsize=8, color="black")
        elif not np.isnan(value):
            axis.text(
                x,
                y,
                f"{value:.1f}",
                ha="center",
                va="center",
                fontsize=8,
                color="black" if value > middle else "white",
            )
    axis.set_title("test accuracy, %", fontsize=9, loc="left")
    with files.replacing(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")
    pyplot.close(figure)
