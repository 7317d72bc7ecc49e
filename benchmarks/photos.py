"""When is a set of a few photographs worth less than random ones in a network with BatchNorm?

    python benchmarks/photos.py FOLDER      with CIFAR-10 as the Hub's parquet files

Photographs of four classes in the proportions 6 : 3 : 2 : 1, enlarged to 64 pixels, from which DM
makes ten images per class in a ConvNet with instance norm, three times by different seeds. Few
steps, small data and pixels far out of range are each a setting. A network of each kind is trained
on each set, as exact tensors and where pixels are far out of range in 8 bits too, all at one rate.
It is tested as it is and with statistics of its BatchNorm layers taken anew from the real training
images, which tells what the statistics alone cost.

Writes docs/results/photos_small.json and .md. The same command resumes; runs go to runs/photos.
"""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor, nn

import ddengine
import synth
from ddengine.api.results import Distilled
from ddengine.artefact.eight_bit import exported
from ddengine.data import RealSet, load_data
from ddengine.evaluation.intervals import interval
from ddengine.models.norms import batch_norms
from ddengine.recipe import DataConfig, Recipe
from ddengine.system import files, log, runtime

ROOT = Path(__file__).resolve().parent.parent
RUNS = ROOT / "runs" / "photos"
JSON = ROOT / "docs" / "results" / "photos_small.json"
CLASSES = {"airplane": 0, "automobile": 1, "frog": 6, "horse": 7}  # with their numbers in CIFAR-10
SHARES = (6, 3, 2, 1)  # of the classes in the photographs
TEST_IMAGES = 150  # of each class
SIDE = 64
RATE = 0.01
SEEDS = (0, 1, 2)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How a set is made."""

    label: str
    photos: int = 600
    steps: int = 100
    lr: float = 10.0
    bounded: bool = False
    in_8_bits: bool = False  # also as PNG files have it
    select: bool = False  # random real images instead


@dataclass(frozen=True)
class Network:
    """What is trained on the sets."""

    name: str
    updates: int
    has_norm: bool  # BatchNorm, which has running statistics


Row = dict[str, Any]
SETTINGS = (
    Setting(label="random images", select=True),
    Setting(label="DM"),
    Setting(label="DM, 20 steps", steps=20),
    Setting(label="DM, pixel rate 100", lr=100.0, in_8_bits=True),
    Setting(label="DM, pixel rate 100, bounded", lr=100.0, bounded=True),
    Setting(label="DM, pixel rate 100, 6,000 photographs", lr=100.0, photos=6000),
    Setting(label="DM, pixel rate 1000", lr=1000.0, in_8_bits=True),
)
NETWORKS = (
    Network("convnet-d3-w16-bn", 100, True),
    Network("convnet-d3-w16-in", 100, False),
    Network("torchvision/resnet18", 60, True),
)
UPDATES = {network.name: network.updates for network in NETWORKS}


# The photographs


@cache
def photographs(folder: str, num: int) -> ddengine.Dataset:
    """`num` training images in unequal classes, and the test images, of 64 pixels."""
    config = DataConfig(
        name="cifar10",
        root=folder,
        classes=tuple(CLASSES.values()),
        size=(SIDE, SIDE),
        validation=0.0,
    )
    data = load_data(config, torch.device("cpu"), test=True)
    assert data.test is not None
    counts = [num * share // sum(SHARES) for share in SHARES]
    train = first_of_each(data.train, counts)
    test = first_of_each(data.test, [TEST_IMAGES] * len(CLASSES))
    return ddengine.Dataset.of(train, classes=list(CLASSES), test=test)


def first_of_each(real: RealSet, counts: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The first images of each class: (pixels uint8, labels)."""
    index = torch.cat([members[:n] for members, n in zip(real.members, counts, strict=True)])
    return real.pixels[index], real.labels[index]


# The sets


def recipe_of(setting: Setting) -> Recipe:
    """DM's small recipe, changed as a setting says."""
    recipe: Recipe = synth.find("dm/fashion_mnist_ipc10_small")
    images = replace(recipe.outer.optim["images"], lr=setting.lr)
    return replace(
        recipe,
        data=DataConfig(name="own", validation=0.0),
        codec=replace(recipe.codec, bounded=setting.bounded),
        objective=replace(recipe.objective, real_batch=64),
        outer=replace(
            recipe.outer,
            steps=setting.steps,
            optim={"images": images},
            evaluate_every=0,
            picture_every=0,
        ),
        evaluation=replace(recipe.evaluation, lr=RATE),
    )


def set_of(setting: Setting, data: ddengine.Dataset, seed: int) -> Distilled:
    """The set of a setting, one for each seed."""
    recipe = recipe_of(setting)
    if setting.select:
        return ddengine.select(data, recipe, seed=seed, progress=False)
    name = "".join(c if c.isalnum() else "_" for c in setting.label)
    folder = RUNS / f"{name}-{seed}"
    return ddengine.distill(data, recipe, folder=folder, seed=seed, progress=False)


def in_8_bits(result: Distilled) -> Distilled:
    """The set as its PNG files say it."""
    pixels = (result.pixels().clamp(0, 1) * 255).round() / 255
    images = result.preprocess.forward(pixels)
    return replace(result, set=result.set.with_tensors({"images": images}))


def range_of(result: Distilled) -> dict[str, float]:
    """How far the pixels of a set are from those of images."""
    pixels = result.preprocess.backward(result.batch(torch.arange(len(result))).images)
    return {
        "outside": exported(result.set).clamped,
        "lowest": float(pixels.min()),
        "highest": float(pixels.max()),
    }


# The networks


def tested(network: nn.Module, real: RealSet) -> float:
    """Accuracy of a network in evaluation mode, a fraction."""
    right = 0
    with torch.no_grad():
        for part in torch.arange(len(real)).split(200):
            right += int((network(real.images(part)).argmax(1) == real.labels[part]).sum())
    return right / len(real)


def with_statistics_of(network: nn.Module, real: RealSet) -> nn.Module:
    """The network, its BatchNorm layers with mean and variance of real images."""
    for norm in batch_norms(network):
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
    network.train()
    with torch.no_grad():
        for part in torch.randperm(len(real)).split(100):
            network(real.images(part))
    return network.eval()


def measured(result: Distilled, network: Network, seed: int, test: RealSet, real: RealSet) -> Row:
    """What a network trained on a set reaches."""
    protocol = {"epochs": network.updates - 1}  # of one update, and one more at the end
    trained = ddengine.train(
        result, network.name, protocol=protocol, lr=RATE, seed=seed, progress=False
    )
    row: Row = {"network": network.name, "seed": seed, "accuracy": tested(trained, test)}
    if list(batch_norms(trained)):
        row["real_statistics"] = tested(with_statistics_of(trained, real), test)
    return row


def main(folder: str) -> None:
    """Make, measure, write."""
    rows = json.loads(JSON.read_text())["rows"] if JSON.exists() else []
    done = {(row["set"], row["form"], row["network"], row["seed"]) for row in rows}
    began = time.perf_counter()
    for network in NETWORKS:
        for setting in SETTINGS:
            data = photographs(folder, setting.photos)
            for seed in SEEDS:
                forms = forms_of(set_of(setting, data, seed), setting)
                for form, result in forms.items():
                    if (setting.label, form, network.name, seed) in done:
                        continue
                    test, real = sets_seen_as(result, data)
                    row = measured(result, network, seed, test, real)
                    rows.append({"set": setting.label, "form": form} | row | range_of(result))
                    write(rows)
                    label = f"{network.name}, {setting.label}, {form}, seed {seed}"
                    print(f"{label}: {log.duration(time.perf_counter() - began)}", flush=True)


def forms_of(result: Distilled, setting: Setting) -> dict[str, Distilled]:
    """The forms in which networks are trained on a set."""
    forms = {"exact": result}
    if setting.in_8_bits:
        forms["8 bits"] = in_8_bits(result)
    return forms


def sets_seen_as(result: Distilled, data: ddengine.Dataset) -> tuple[RealSet, RealSet]:
    """(test, training) images through the preprocessing of a set."""

    def seen(examples: Any) -> RealSet:
        pixels, labels = examples
        return RealSet(pixels, labels, len(CLASSES), result.preprocess)

    return seen(data.test_examples), seen(data.examples)


def write(rows: Sequence[Row]) -> None:
    """The JSON file and the table."""
    where = {"machine": runtime.machine(torch.device("cpu")), "versions": runtime.versions()}
    settings = [asdict(setting) for setting in SETTINGS]
    content = {"settings": settings, "rate": RATE, "updates": UPDATES, "rows": rows}
    files.write_json(JSON, content | where | {"commit": runtime.commit()})
    files.write_text(JSON.with_suffix(".md"), table(rows))


def table(rows: Sequence[Row]) -> str:
    """A line for each set and form: mean and 95 % interval in each network."""
    heads = ["set", "form", "outside 0 to 1, %", "pixels"]
    for network in NETWORKS:
        heads.append(network.name)
        if network.has_norm:
            heads.append("its statistics from real images")
    lines = [" | ".join(heads), " | ".join(["---"] * len(heads))]
    for key in dict.fromkeys((row["set"], row["form"]) for row in rows):
        of_key = [row for row in rows if (row["set"], row["form"]) == key]
        outside = fmean(row["outside"] for row in of_key)
        lowest = min(row["lowest"] for row in of_key)
        highest = max(row["highest"] for row in of_key)
        cells = [*key, f"{100 * outside:.1f}", f"{lowest:.1f} to {highest:.1f}"]
        for network in NETWORKS:
            of_network = [row for row in of_key if row["network"] == network.name]
            cells.append(said([row["accuracy"] for row in of_network]))
            if network.has_norm:
                cells.append(said([row["real_statistics"] for row in of_network]))
        lines.append(" | ".join(cells))
    return "".join(f"| {line} |\n" for line in lines)


def said(accuracies: Sequence[float]) -> str:
    """Mean and interval in percent."""
    mean, _, ends = interval(accuracies)
    if mean is None:
        return "-"
    between = f" ({100 * ends[0]:.1f} to {100 * ends[1]:.1f})" if ends else ""
    return f"{100 * mean:.1f}{between}"


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
