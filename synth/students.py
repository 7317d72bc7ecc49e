"""What a set says of its students: how those that it was distilled for were trained.

Learned step sizes are stored as numbers whose softplus they are, so that they stay positive.
"""

import math
from typing import Protocol

from torch import Tensor
from torch.nn import functional

from ddengine.learning.by_higher import TorchOptimiser
from ddengine.learning.updates import Update
from ddengine.objective import Env
from ddengine.recipe import AugmentConfig, StudentSteps, StudentTraining
from ddengine.sets.synthetic import SyntheticSet
from synth.inner_batches import InnerBatches


class Training(Protocol):
    """The settings of a student's training."""

    @property
    def inner_steps(self) -> int:
        """Steps."""
        ...

    @property
    def update(self) -> Update | TorchOptimiser:
        """How it steps."""
        ...

    @property
    def lr(self) -> float:
        """Its step size where none is learned."""
        ...

    @property
    def learned_rates(self) -> bool:
        """Whether the set has a step size of each step."""
        ...

    @property
    def weight_decay(self) -> float:
        """Added to its gradient."""
        ...

    @property
    def batches(self) -> InnerBatches:
        """What it sees in each step."""
        ...

    @property
    def augment(self) -> AugmentConfig:
        """Of its batches."""
        ...


def before_softplus(rate: float) -> float:
    """The number whose softplus is a positive step size of any size; exp alone overflows."""
    return rate + math.log(-math.expm1(-rate))


def students_of(config: Training, syn: SyntheticSet) -> StudentTraining | None:
    """The training of students of a set, in torch's form; None for an update that has none."""
    step = config.update.in_torch
    if step is None:
        return None
    rates: tuple[float, ...] = ()
    if config.learned_rates:
        rates = tuple(functional.softplus(syn.tensors["rates"].double()).tolist())
    steps = StudentSteps(step=step, batches=config.batches.of_a_set(syn), rates=rates)
    return StudentTraining(
        steps=steps,
        updates=config.inner_steps,
        batch=config.batches.images(syn),
        lr=steps.mean_rate if rates else config.lr,
        weight_decay=config.weight_decay,
        augment=config.augment,
    )


def training_loss(env: Env, theta: Tensor, images: Tensor, targets: Tensor) -> Tensor:
    """The loss of a batch of a student with the parameters theta (P,)."""
    return env.loss(env.model(theta, images), targets)
