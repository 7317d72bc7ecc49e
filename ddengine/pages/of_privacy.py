"""The picture and the table of privacy.json."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from ddengine.data import Data
from ddengine.sets.synthetic import SyntheticSet
from ddengine.system import files


def picture(
    path: Path, syn: SyntheticSet, data: Data, result: dict[str, Any], most: int = 10
) -> None:
    """A PNG with a column for each of the distilled images nearest to training images, at most
    `most`: it, and its nearest real images below.

    Rows: distilled; nearest training image in pixels; in the embedding; nearest held-out image in
    pixels. Distances are written below.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    assert data.test is not None
    entries = result["shown"][:most]
    rows = (
        ("distilled", None, ("", "")),
        ("nearest in train,\npixels", data.train, ("pixels", "train")),
        ("nearest in train,\nembedding", data.train, ("embedding", "train")),
        ("nearest held out,\npixels", data.test, ("pixels", "held_out")),
    )
    figure = pyplot.figure(figsize=(1.15 * len(entries) + 1.3, 5.6), layout="constrained")
    axes: Any = figure.subplots(len(rows), len(entries), squeeze=False)
    for column, entry in enumerate(entries):
        for line, (_, real, (space, split)) in enumerate(rows):
            axis = axes[line, column]
            if real is None:
                image, text = (
                    syn.pixels(torch.tensor([entry["image"]]))[0].clamp(0, 1).cpu(),
                    data.class_names[entry["class"]],
                )
            else:
                found = entry[space][split]
                image = real.pixels[found["index"]].float().cpu() / 255
                text = f"{data.class_names[found['class']]}, {found['distance']:.3f}"
            axis.imshow(
                image.permute(1, 2, 0).expand(-1, -1, 3).numpy(),
                interpolation="nearest",
                vmin=0,
                vmax=1,
            )
            axis.set_xlabel(text, fontsize=7)
            axis.set_xticks([])
            axis.set_yticks([])
    for line, (text, _, _) in enumerate(rows):
        axes[line, 0].set_ylabel(text, fontsize=8)
    with files.replacing(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")
    pyplot.close(figure)


HEADS = ("", "distilled", "control", "by chance")


def lines(result: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """What `measure` returns in words and numbers, under HEADS: a line a number, beside it the
    control and what chance would give.
    """
    found: list[tuple[str, str, str, str]] = []

    def line(name: str, own: str, control: str = "-", chance: str = "-") -> None:
        found.append((name, own, control, chance))

    number, percent = "{:.3f}".format, "{:.0%}".format
    for space, both in result["neighbours"].items():
        own, control = both["distilled"], both.get("control")

        def cells(
            key: str,
            form: Callable[[Any], str],
            own: dict[str, Any] = own,
            control: dict[str, Any] | None = control,
        ) -> tuple[str, str]:
            return tuple(
                "-" if of is None or of[key] is None else form(of[key]) for of in (own, control)
            )  # type: ignore[return-value]

        line(
            f"nearest images, {space}",
            f"{own['images']} images",
            f"{control['images']} images" if control else "-",
            "",
        )
        if "near_copies" in own:
            line(f"  near copies (RMS < {result['near_copy_rms']:g})", *cells("near_copies", str))
        line("  much nearer to train", *cells("much_nearer", str))
        line("  median distance to train", *cells("median_train", number))
        line("  median distance to held out", *cells("median_held_out", number))
        line(
            "  nearest is in train",
            *cells("nearest_in_train", percent),
            percent(own["nearest_in_train_by_chance"]),
        )
        low, high = own["balanced_ci95"]
        of_set, of_control = cells("balanced_nearest_in_train", percent)
        line(
            "  the same, balanced",
            f"{of_set} ({100 * low:.0f} to {100 * high:.0f})",
            of_control,
            percent(own["balanced_by_chance"]),
        )
    for attack in result["membership"]:
        low, high = attack["ci95"]
        other = attack["control"]
        line(
            f"AUC, {attack['score']}",
            f"{attack['auc']:.2f} ({low:.2f} to {high:.2f})",
            f"{other['auc']:.2f}" if other else "-",
            "0.50",
        )
        line(
            "  found at 1 % false alarms",
            f"{attack['tpr_at_1_fpr']:.1%}",
            f"{other['tpr_at_1_fpr']:.1%}" if other else "-",
            "1.0%",
        )
    return found


def title(result: dict[str, Any]) -> str:
    """How many images are compared."""
    return f"{result['images']} distilled images beside {result['train']} training and {result['held_out']} held-out ones"


def table(result: dict[str, Any]) -> Table:
    """`lines` for the terminal, the note below."""
    shown = Table(
        title=title(result), title_justify="left", caption=result["note"], caption_justify="left"
    )
    for head in HEADS:
        shown.add_column(head, justify="right" if head else "left", no_wrap=True)
    for cells in lines(result):
        if not cells[0].startswith(" "):
            shown.add_section()
        shown.add_row(*cells)
    return shown
