"""What the recipes of distribution matching in networks of experts have in common (TGDD, NCFM)."""

from dataclasses import replace
from typing import Any, Literal

from buffers.mixed import MixedSgd
from buffers.steps import Sgd
from ddengine.recipe import (
    AugmentConfig,
    BufferConfig,
    DataConfig,
    EvalConfig,
    OptimConfig,
    Recipe,
)
from ddengine.sets.codec import MultiFormation
from synth.distribution import DistributionMatching
from synth.recipes.cells import UNTUNED, sentences
from synth.recipes.matching import cell, small

MATCHING = AugmentConfig(always=("color", "crop", "cutout"), ops=())
NOT_READ = "No published figure was read where it was printed; a note of others gives {}."


def experts(num: int, keep: Literal["all", "ends"], epochs: int = 60) -> BufferConfig:
    """Networks as both methods train them: SGD on real images, half of the batches mixed."""
    return BufferConfig(
        step=MixedSgd(sgd=Sgd(lr=0.01, momentum=0.9, weight_decay=5e-4, thirds=0.2)),
        num_experts=num,
        epochs=epochs,
        batch=128,
        augment=AugmentConfig(always=("color", "crop"), ops=()),
        keep=keep,
    )


def published_cell(
    method: str,
    cites: tuple[str, ...],
    dataset: str,
    ipc: int,
    *,
    buffer: BufferConfig,
    objective: DistributionMatching,
    optim: OptimConfig,
    variant: str = "",
    evaluation: EvalConfig,
    **settings: Any,
) -> Recipe:
    """A cell with four quarter images in each stored one, and an update after each class."""
    recipe = cell(
        method,
        cites,
        dataset,
        ipc,
        objective=objective,
        codec=MultiFormation(factor=2),
        evaluation=evaluation,
        step_after="each",
        checkpoint_every=500,
        lr_img=optim.lr,
        **settings,
    )
    outer = replace(recipe.outer, optim={"images": optim})
    return replace(recipe, name=f"{recipe.name}{variant}", buffer=buffer, outer=outer)


def small_cell(
    method: str,
    cites: tuple[str, ...],
    ipc: int,
    *,
    objective: DistributionMatching,
    keep: Literal["all", "ends"],
    steps: int,
    optim: OptimConfig,
    variant: str = "",
) -> Recipe:
    """A cell for a CPU: five experts of ten epochs on 10,000 images."""
    recipe = small(
        method,
        cites,
        ipc,
        objective=objective,
        steps=steps,
        lr_img=optim.lr,
        codec=MultiFormation(factor=2),
        step_after="each",
    )
    return replace(
        recipe,
        name=f"{recipe.name.removesuffix('_small')}{variant}_small",
        note=sentences(recipe.note, UNTUNED),
        buffer=replace(experts(5, keep, epochs=10), batch=64),
        outer=replace(recipe.outer, optim={"images": optim}),
    )


def digits_cell(recipe: Recipe, augment: AugmentConfig) -> Recipe:
    """The same on the 8x8 digits of scikit-learn: seconds on a CPU."""
    return replace(
        recipe,
        name=recipe.name.replace("fashion_mnist", "digits").removesuffix("_small"),
        data=DataConfig(name="digits"),
        model="convnet-d2-w32-in",
        codec=MultiFormation(factor=1),
        outer=replace(recipe.outer, evaluate_every=recipe.outer.steps),
        evaluation=replace(recipe.evaluation, epochs=150, augment=augment),
    )
