"""What the cells of back-propagation through training have in common."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ddengine.recipe import (
    AugmentConfig,
    DataConfig,
    EvalConfig,
    InitConfig,
    OptimConfig,
    OuterConfig,
    Recipe,
    TargetConfig,
)
from ddengine.sets.codec import Codec, Identity
from synth.bptt import ThroughTraining
from synth.recipes.cells import (
    DEPTH,
    FILES,
    SMALL_NOTE,
    Figure,
    figure,
    sentences,
    small_outer,
)
from synth.recipes.protocols import PROTOCOLS

FLIP_ROTATE = AugmentConfig(ops=("flip", "rotate"))
CIFAR = DataConfig(name="cifar10", limit=10000)
# of a cell of CIFAR-10
TAKEN_OVER = "The rates are those of the cell of Fashion-MNIST."


def compared(method: str, steps: int, reached: Mapping[float, float]) -> str:
    """How the rate of what is learned was chosen: accuracies in % by the rates that were tried."""
    said = ", ".join(f"{accuracy} % at {rate:g}" for rate, accuracy in reached.items())
    return (
        f"The rate of what is learned was chosen in runs of {steps} steps of {method}, one seed, "
        f"by one network on 1,000 validation images, where 1.5 points are chance: {said}."
    )


def adam(lr: float, **options: Any) -> OptimConfig:
    """Adam with the usual betas 0.9 and 0.999."""
    return OptimConfig(lr=lr, kind="adam", **{"momentum": 0.9, "beta2": 0.999, **options})


def clipped_adam(lr: float) -> OptimConfig:
    """Adam with gradients of at most twice the running average of norms (RaT-BPTT)."""
    return adam(lr, clip_average=2.0)


def learned_weights(lr: float) -> dict[str, OptimConfig]:
    """Of images, and of weights of the classes, whose gradients are not clipped (RaT-BPTT)."""
    return {"images": clipped_adam(lr), "weights": adam(lr)}


def unit_noise() -> InitConfig:
    """Noise whose images have norm 1 (RaT-BPTT)."""
    return InitConfig(kind="noise", norm=1.0)


def own_training(objective: ThroughTraining, **changes: Any) -> EvalConfig:
    """The protocol that trains networks as the students of an objective are trained."""
    lr = objective.lr
    return replace(PROTOCOLS["bptt"], augment=objective.augment, lr=lr, **changes)


def _targets(optim: Mapping[str, OptimConfig]) -> TargetConfig:
    """What images are labelled with, by what is learned."""
    return TargetConfig(kind="weights") if "weights" in optim else TargetConfig()


def cell(
    name: str,
    cites: tuple[str, ...],
    dataset: str,
    ipc: int,
    *,
    objective: ThroughTraining,
    optim: Mapping[str, OptimConfig],
    steps: int,
    init: InitConfig,
    evaluation: EvalConfig,
    published: Figure,
    source: str,
    note: str = "",
    zca: bool = False,
    codec: Codec = Identity(),
    model: str | None = None,
) -> Recipe:
    """A published cell: the whole training split, no experts.

    Labels are hard, unless `optim` has a rate of weights of the classes. `published` are mean and
    deviation in %, as printed.
    """
    return Recipe(
        name=name,
        cites=cites,
        published=figure(published, source),
        note=sentences(note, FILES.get(dataset, "")),
        data=DataConfig(name=dataset, validation=0.0, zca=zca),
        model=model or f"convnet-d{DEPTH.get(dataset, 3)}-w128-in",
        ipc=ipc,
        buffer=None,
        init=init,
        codec=codec,
        targets=_targets(optim),
        objective=objective,
        outer=OuterConfig(steps=steps, optim=optim, picture_every=steps // 10),
        evaluation=evaluation,
    )


def small(
    name: str,
    cites: tuple[str, ...],
    ipc: int,
    *,
    objective: ThroughTraining,
    optim: Mapping[str, OptimConfig],
    steps: int,
    init: InitConfig = InitConfig(),
    codec: Codec = Identity(),
    data: DataConfig = DataConfig(name="fashion_mnist", limit=10000),
    model: str = "convnet-d3-w16-in",
    epochs: int = 300,
    validations: int = 6,
    note: str = "",
) -> Recipe:
    """A cell of this project for a CPU; its settings were chosen on the validation split.

    In a few short runs each, of one seed; `note` says of which.
    """
    return Recipe(
        name=name,
        cites=cites,
        published=None,
        note=sentences(SMALL_NOTE, note),
        data=data,
        model=model,
        ipc=ipc,
        buffer=None,
        init=init,
        codec=codec,
        targets=_targets(optim),
        objective=objective,
        outer=small_outer(steps, optim, validations),
        evaluation=replace(PROTOCOLS["fast"], epochs=epochs, full_steps=300),
    )
