"""What the published cells of trajectory matching have in common."""

from collections.abc import Mapping
from typing import Any

from ddengine.recipe import (
    BufferConfig,
    DataConfig,
    EvalConfig,
    InitConfig,
    OptimConfig,
    OuterConfig,
    Published,
    Recipe,
    TargetConfig,
)
from ddengine.sets.codec import Identity
from synth.recipes.protocols import PROTOCOLS
from synth.trajectory import TrajectoryMatching

SUBSETS = ("imagenette", "imagewoof", "imagefruit", "imagemeow", "imagesquawk", "imageyellow")
# of the ConvNet
DEPTH = {
    "cifar10": 3,
    "cifar100": 3,
    "tiny_imagenet": 4,
    "imagenet": 4,
    **dict.fromkeys(SUBSETS, 5),
}
SIZE = {"imagenet": (64, 64), **dict.fromkeys(SUBSETS, (128, 128))}
CLASS_FOLDERS = (
    "Give --data.root a folder with train/WNID/* and val/WNID/*, which are ILSVRC2012's class "
    "folders (all, or those of the ten classes)."
)
RESIZED = (
    "The released pipeline squashes images without antialiasing; this engine squashes them with it."
)
FILES = {
    "tiny_imagenet": "Give --data.root the folder tiny-imagenet-200 as it is distributed.",
    **dict.fromkeys(("imagenet", *SUBSETS), f"{CLASS_FOLDERS} {RESIZED}"),
}


# mean and deviation in %, as printed; None where nothing was read
Figure = tuple[float, float | None] | None
UNTUNED = "Its learning rates were not tuned."
SMALL_NOTE = "A recipe of this project for a CPU; nothing is published for this cell."


def figure(mean_std: Figure, source: str) -> Published | None:
    """A figure in % as a fraction; None where there is none."""
    if mean_std is None:
        return None
    mean, std = mean_std
    return Published(accuracy=mean / 100, std=std and std / 100, source=source)


def quoted(percent: float) -> str:
    """A note of a figure that no paper, table or README was read for, and so is not published."""
    return f"No published figure was read; a summary by others quotes {percent:g} %."


def sentences(*notes: str) -> str:
    """A note of those sentences that are not empty."""
    return " ".join(filter(None, notes))


def small_outer(
    steps: int, optim: Mapping[str, OptimConfig], validations: int = 6, **outer: Any
) -> OuterConfig:
    """The outer loop of a small cell, with so many validations and pictures."""
    every = max(1, steps // validations)
    return OuterConfig(
        steps=steps,
        optim=optim,
        checkpoint_every=10,
        evaluate_every=every,
        picture_every=every,
        **outer,
    )


def cell(
    method: str,
    cites: tuple[str, ...],
    dataset: str,
    ipc: int,
    *,
    variant: str = "",
    zca: bool,
    buffer: BufferConfig,
    objective: TrajectoryMatching,
    steps: int = 5000,
    lr_img: float,
    lr_lr: float,
    optim: Mapping[str, OptimConfig] | None = None,
    init: InitConfig = InitConfig(),
    targets: TargetConfig = TargetConfig(),
    evaluation: EvalConfig = PROTOCOLS["mtt"],
    published: Published | None,
    note: str = "",
    **outer: Any,
) -> Recipe:
    """A published cell: the whole training split, a ConvNet of width 128.

    Pixels and the learning rate are learned by SGD.
    """
    return Recipe(
        name=f"{method}/{dataset}_ipc{ipc}{variant}",
        cites=cites,
        published=published,
        note=sentences(note, FILES.get(dataset, "")),
        data=DataConfig(name=dataset, zca=zca, validation=0.0, size=SIZE.get(dataset)),
        model=f"convnet-d{DEPTH[dataset]}-w128-in",
        ipc=ipc,
        buffer=buffer,
        init=init,
        codec=Identity(),
        targets=targets,
        objective=objective,
        outer=OuterConfig(
            steps=steps,
            optim={"images": OptimConfig(lr=lr_img), "lr": OptimConfig(lr=lr_lr), **(optim or {})},
            picture_every=500,
            **outer,
        ),
        evaluation=evaluation,
    )
