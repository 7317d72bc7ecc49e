"""Does a set that is made for several networks do more in them than one that is made for one?

    python benchmarks/several_networks.py [FOLDER]      with the files of Fashion-MNIST

DM makes ten images per class of Fashion-MNIST for a ConvNet with instance norm, for a ResNet18 with
BatchNorm, for both in turn with as many steps in all, and for both with twice as many, which are as
many for each network as it has alone. The set for the ResNet is also made with losses that are not
scaled to the gradients in the ConvNet, which the learning rate is for. Three distillations of each
setting, and three draws of random images. Networks of both kinds, and of one that no set was made
for, learn from every set.

Writes docs/results/several_networks_small.json and .md. The same command resumes; runs go to
runs/several_networks.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

import ddengine
import synth
from ddengine.recipe import Recipe
from ddengine.system import files, runtime

ROOT = Path(__file__).resolve().parent.parent
RUNS = ROOT / "runs" / "several_networks"
OUT = ROOT / "docs" / "results" / "several_networks_small"
RECIPE = "dm/fashion_mnist_ipc10_small"
CONVNET = "convnet-d3-w16-in"
RESNET = "resnet18-bn-x12"
OTHER = "convnet-d3-w16-bn"  # that no set is made for
SEEDS = (0, 1, 2)
STEPS = 150
REAL_BATCH = 32  # of each class in a step
PROTOCOL = {"epochs": 100, "num_networks": 2, "lr_grid": (0.01, 0.1)}


@dataclass(frozen=True)
class Setting:
    """What a set is made for."""

    label: str
    networks: tuple[str, ...]  # none: random images
    steps: int = STEPS
    scaled: bool = True  # losses, to the gradients in the network of the recipe


Row = dict[str, Any]
SETTINGS = (
    Setting("random images", ()),
    Setting("for the ConvNet", (CONVNET,)),
    Setting("for the ResNet", (RESNET,)),
    Setting("for the ResNet, not scaled", (RESNET,), scaled=False),
    Setting("for both", (CONVNET, RESNET)),
    Setting("for both, twice the steps", (CONVNET, RESNET), 2 * STEPS),
)


def recipe_of(setting: Setting, root: str | None) -> Recipe:
    """DM's small recipe for the networks of a setting, with images of the folder `root`."""
    recipe: Recipe = synth.find(RECIPE)
    outer = replace(recipe.outer, steps=setting.steps, evaluate_every=0, picture_every=0)
    objective = replace(recipe.objective, real_batch=REAL_BATCH)
    data = replace(recipe.data, root=root)
    changed = replace(recipe, data=data, outer=outer, objective=objective)
    made = ddengine.for_networks(changed, setting.networks)
    return made if setting.scaled else replace(made, scaled_to=None)


def folder_of(setting: Setting, seed: int) -> Path:
    """Where a run lies."""
    name = "".join(c if c.isalnum() else "_" for c in setting.label)
    return RUNS / f"{name}-{seed}"


def make(setting: Setting, seed: int, root: str | None) -> None:
    """Make the set of a setting and train networks on it, or read them."""
    folder = folder_of(setting, seed)
    if setting.networks:
        ddengine.distill(None, recipe_of(setting, root), folder=folder, seed=seed)
    else:
        ddengine.select(None, recipe_of(setting, root), folder=folder, seed=seed)
    models = (CONVNET, RESNET, OTHER)
    ddengine.evaluate(folder, models=models, baselines=(), protocol=PROTOCOL, seed=seed)


def compared(done: Sequence[Setting], to: Setting) -> list[Row]:
    """A row for each setting and network, with its difference to one of the settings."""
    runs = [folder_of(setting, seed) for setting in done for seed in SEEDS]
    outcome = ddengine.compare(runs, to=folder_of(to, SEEDS[0]))
    rows = []
    for row in outcome.rows:
        names = [Path(run).name for run in row["runs"]]
        rows.append({"set": done[row["row"] - 1].label, **row, "runs": names})
    return rows


def write(done: Sequence[Setting]) -> None:
    """The JSON file and the table of the settings whose runs are there."""
    alone = [setting for setting in done if len(setting.networks) == 1 and setting.scaled]
    comparisons = {setting.label: compared(done, setting) for setting in alone}
    where = {"machine": runtime.machine(torch.device("cpu")), "versions": runtime.versions()}
    settings = {"recipe": RECIPE, "steps": STEPS, "real_batch": REAL_BATCH, "protocol": PROTOCOL}
    content = {"settings": settings, "less": comparisons} | where | {"commit": runtime.commit()}
    files.make_folder(OUT.parent)
    files.write_json(OUT.with_suffix(".json"), content)
    files.write_text(OUT.with_suffix(".md"), table(comparisons))


def table(comparisons: dict[str, list[Row]]) -> str:
    """Of each set and network its mean, and what it is above the set made for one network."""
    heads = ["set", "network", "accuracy % (95 % interval)", "distillations"]
    heads += [f"less the set {label} (95 % interval), p by Holm" for label in comparisons]
    lines = [heads, ["---"] * len(heads)]
    first, *_ = comparisons.values()
    for place, row in enumerate(first):
        cells = [row["set"], row["model"], said(row["accuracy_mean"], row["ci95"], ".1f")]
        cells.append(str(row["num_distillations"]))
        cells += [difference(rows[place]) for rows in comparisons.values()]
        lines.append(cells)
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def difference(row: Row) -> str:
    """What a row is above another, in percent; a dash beside itself."""
    if row["difference"] is None:
        return "-"
    p = "" if row["p_holm"] is None else f", p = {row['p_holm']:.3f}"
    return said(row["difference"], row["difference_ci95"], "+.1f") + p


def said(value: float, ends: Sequence[float] | None, form: str) -> str:
    """A fraction and its interval in percent."""
    if ends is None:
        return format(100 * value, form)
    low, high = ends
    return f"{100 * value:{form}} ({100 * low:{form}} to {100 * high:{form}})"


def main(root: str | None) -> None:
    """Make, compare, write."""
    done: list[Setting] = []
    for setting in SETTINGS:
        for seed in SEEDS:
            make(setting, seed, root)
        done.append(setting)
        if any(len(one.networks) == 1 for one in done):
            write(done)


if __name__ == "__main__":
    main(*sys.argv[1:] or [None])
