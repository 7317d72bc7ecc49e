"""What the cells of gradient and distribution matching have in common."""

from dataclasses import replace
from typing import Any

from ddengine.recipe import (
    DSA_OPS,
    AugmentConfig,
    DataConfig,
    EvalConfig,
    InitConfig,
    OptimConfig,
    OuterConfig,
    Recipe,
)
from ddengine.sets.codec import Codec, Identity
from synth.recipes.cells import FILES, SMALL_NOTE, Figure, figure, sentences, small_outer
from synth.recipes.protocols import PROTOCOLS

NCFM = "NCFM's table 1"
RECALLED = "No published figure: the one known was recalled, not read."

NONE = AugmentConfig(ops=())
DEPTH = {"tiny_imagenet": 4}  # of the ConvNet; 3 elsewhere
NO_FLIP = ("mnist", "svhn", "digits")  # where a mirrored image is another digit, or none


def strategy(dataset: str) -> AugmentConfig:
    """The operations of DSA that suit a dataset."""
    return AugmentConfig(ops=tuple(op for op in DSA_OPS if op != "flip" or dataset not in NO_FLIP))


def cell(
    method: str,
    cites: tuple[str, ...],
    dataset: str,
    ipc: int,
    *,
    objective: Any,
    steps: int,
    lr_img: float,
    init: InitConfig = InitConfig(),
    evaluation: EvalConfig,
    codec: Codec = Identity(),
    published: Figure,
    source: str,
    note: str = "",
    **outer: Any,
) -> Recipe:
    """A published cell: the whole training split, a ConvNet of width 128, no experts.

    The images are learned by SGD with momentum 0.5.
    """
    return Recipe(
        name=f"{method}/{dataset}_ipc{ipc}",
        cites=cites,
        published=figure(published, source),
        note=sentences(note, FILES.get(dataset, "")),
        data=DataConfig(name=dataset, validation=0.0),
        model=f"convnet-d{DEPTH.get(dataset, 3)}-w128-in",
        ipc=ipc,
        buffer=None,
        init=init,
        codec=codec,
        objective=objective,
        outer=OuterConfig(
            steps=steps,
            optim={"images": OptimConfig(lr=lr_img)},
            picture_every=steps // 10,
            **outer,
        ),
        evaluation=evaluation,
    )


def small(
    method: str,
    cites: tuple[str, ...],
    ipc: int,
    *,
    dataset: str = "fashion_mnist",
    objective: Any,
    steps: int,
    lr_img: float,
    init: InitConfig = InitConfig(),
    codec: Codec = Identity(),
    **outer: Any,
) -> Recipe:
    """A cell of this project for a CPU: 10,000 images of a dataset, a narrow network.

    Its settings were chosen on the validation split, those of CIFAR-10 in a few short runs, where
    its note does not say otherwise.
    """
    return Recipe(
        name=f"{method}/{dataset}_ipc{ipc}_small",
        cites=cites,
        published=None,
        note=SMALL_NOTE,
        data=DataConfig(name=dataset, limit=10000),
        model="convnet-d3-w16-in",
        ipc=ipc,
        buffer=None,
        init=init,
        codec=codec,
        objective=objective,
        outer=small_outer(steps, {"images": OptimConfig(lr=lr_img)}, **outer),
        evaluation=replace(PROTOCOLS["fast"], full_steps=300),
    )
