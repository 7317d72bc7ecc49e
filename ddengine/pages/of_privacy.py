"""The picture and the table of privacy.json."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from ddengine.data import Data
from ddengine.pages.figures import new_figure, save_figure, show_image
from ddengine.sets.synthetic import SyntheticSet
from ddengine.types import Facts

HEADS = ("", "distilled", "control", "by chance")
NONE = "-"  # where there is no number
# rows of the picture below the distilled images: (title, where distances are measured, split)
NEAREST = (
    ("nearest in train,\npixels", "pixels", "train"),
    ("nearest in train,\nembedding", "embedding", "train"),
    ("nearest held out,\npixels", "pixels", "held_out"),
)

Line = tuple[str, str, str, str]  # the cells under HEADS
Words = Callable[[Any], str]  # a number in words


def picture(path: Path, syn: SyntheticSet, data: Data, result: Facts, most: int = 10) -> None:
    """Draw a PNG with a column for each of the distilled images nearest to training images.

    At most `most` images are shown, each above its nearest real images: the training image nearest
    in pixels, the one nearest in the embedding, and the held-out image nearest in pixels. Their
    classes and distances are written below them.
    """
    assert data.test is not None
    splits = {"train": data.train, "held_out": data.test}
    entries = result["shown"][:most]
    size = (1.15 * len(entries) + 1.3, 5.6)
    figure = new_figure(size)
    axes: Any = figure.subplots(1 + len(NEAREST), len(entries), squeeze=False)
    for column, entry in enumerate(entries):
        index = torch.tensor([entry["image"]])
        image = syn.pixels(index)[0].clamp(0, 1).cpu()
        _draw(axes[0, column], image, data.class_names[entry["class"]])
        for line, (_, space, split) in enumerate(NEAREST, start=1):
            near = entry[space][split]
            image = splits[split].pixels[near["index"]].float().cpu() / 255
            class_name = data.class_names[near["class"]]
            _draw(axes[line, column], image, f"{class_name}, {near['distance']:.3f}")
    axes[0, 0].set_ylabel("distilled", fontsize=8)
    for line, (text, _, _) in enumerate(NEAREST, start=1):
        axes[line, 0].set_ylabel(text, fontsize=8)
    save_figure(figure, path)


def _draw(axis: Any, image: torch.Tensor, text: str) -> None:
    show_image(axis, image, vmin=0, vmax=1)
    axis.set_xlabel(text, fontsize=7)


def title(result: Facts) -> str:
    """How many images are compared."""
    return (
        f"{result['images']} distilled images beside {result['train']} training and "
        f"{result['held_out']} held-out ones"
    )


def table(result: Facts) -> Table:
    """`lines` for the terminal, the note below."""
    shown = Table(
        title=title(result), title_justify="left", caption=result["note"], caption_justify="left"
    )
    shown.add_column(HEADS[0], no_wrap=True)
    for head in HEADS[1:]:
        shown.add_column(head, justify="right", no_wrap=True)
    for cells in lines(result):
        if not cells[0].startswith(" "):
            shown.add_section()
        shown.add_row(*cells)
    return shown


def lines(result: Facts) -> list[Line]:
    """What privacy.json says in words and numbers, a line for each number, as cells under HEADS.

    Beside a number stand that of the control and what chance would give.
    """
    shown: list[Line] = []
    for space, groups in result["neighbours"].items():
        shown += _neighbour_lines(space, groups, result["near_copy_rms"])
    for attack in result["membership"]:
        shown += _attack_lines(attack)
    return shown


def _neighbour_lines(space: str, groups: Facts, near_copy: float) -> list[Line]:
    """The lines about the nearest images in "pixels" or in the "embedding"."""
    of_set = groups["distilled"]
    of_control = groups.get("control")

    def line(name: str, key: str, in_words: Words, chance: str = NONE) -> Line:
        return name, _cell(of_set, key, in_words), _cell(of_control, key, in_words), chance

    images = "{} images".format
    heading = f"nearest images, {space}"
    shown = [line(heading, "images", images, chance="")]
    if "near_copies" in of_set:
        shown.append(line(f"  near copies (RMS < {near_copy:g})", "near_copies", str))
    shown += [
        line("  much nearer to train", "much_nearer", str),
        line("  median distance to train", "median_train", _number),
        line("  median distance to held out", "median_held_out", _number),
    ]
    chance = _percent(of_set["nearest_in_train_by_chance"])
    shown.append(line("  nearest is in train", "nearest_in_train", _percent, chance))
    key = "balanced_nearest_in_train"
    low, high = of_set["balanced_ci95"]
    share = f"{_cell(of_set, key, _percent)} ({100 * low:.0f} to {100 * high:.0f})"
    chance = _percent(of_set["balanced_by_chance"])
    shown.append(("  the same, balanced", share, _cell(of_control, key, _percent), chance))
    return shown


def _attack_lines(attack: Facts) -> list[Line]:
    """The lines about one way of membership inference."""
    low, high = attack["ci95"]
    control = attack["control"] or None
    area = f"{attack['auc']:.2f} ({low:.2f} to {high:.2f})"
    area_of_control = _cell(control, "auc", "{:.2f}".format)
    key = "tpr_at_1_fpr"
    in_percent = "{:.1%}".format
    share = _cell(attack, key, in_percent)
    share_of_control = _cell(control, key, in_percent)
    return [
        (f"AUC, {attack['score']}", area, area_of_control, "0.50"),
        ("  found at 1 % false alarms", share, share_of_control, "1.0%"),
    ]


def _cell(statistics: Facts | None, key: str, in_words: Words) -> str:
    """A number in words, a dash where there are no statistics or no number."""
    if statistics is None or statistics[key] is None:
        return NONE
    return in_words(statistics[key])


def _number(value: float) -> str:
    return f"{value:.3f}"


def _percent(fraction: float) -> str:
    return f"{fraction:.0%}"
