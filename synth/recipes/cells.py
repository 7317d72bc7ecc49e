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


def figure(mean_std: tuple[float, float] | None, source: str) -> Published | None:
    """A figure in % as a fraction; None where there is none."""
    return (
        Published(accuracy=mean_std[0] / 100, std=mean_std[1] / 100, source=source)
        if mean_std
        else None
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
        note=" ".join(filter(None, (note, FILES.get(dataset, "")))),
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
