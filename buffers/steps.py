"""The plain training step of an expert, and what all steps share."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from ddengine.models.norms import norms_with_statistics
from ddengine.recipe import require
from ddengine.types import ExpertStep

# (augmented images, labels, the images before augmentation, epoch) -> loss before the step; of
# several views of each image, the augmented images are all of the first view, then of the next
Step = Callable[[Tensor, Tensor, Tensor, int], Tensor]
# (gradients by parameter, epoch): one update of the network
Update = Callable[[Sequence[Tensor], int], None]


class StepConfig(ExpertStep, Protocol):
    """The options of an expert's training step, as a frozen dataclass that subclasses this.

    Only `build` has no default.
    """

    @property
    def views(self) -> int:
        """How many times each image of a batch is augmented."""
        return 1

    def build(self, model: nn.Module, epochs: int) -> Step:
        """The step on `model` for a training of `epochs` epochs.

        Torch's generator gives what in it starts at random, from a stream of the expert's own.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Sgd(StepConfig):
    """SGD on the cross-entropy (MTT, Cazenavette et al., CVPR 2022)."""

    lr: float = 0.01
    momentum: float = 0.0
    weight_decay: float = 0.0
    decay: float = 1.0  # factor on the rate after epoch E // 2 + 1 of E; 0.1 is MTT's --decay
    cosine: bool = False  # the rate falls to 0 along half a cosine, epoch by epoch

    def __post_init__(self) -> None:
        require(
            0 < self.lr < float("inf"),
            f"buffer.step.lr must be positive and finite, got {self.lr}.",
        )
        require(
            0 <= self.momentum < 1,
            f"buffer.step.momentum must be at least 0 and below 1, got {self.momentum}.",
        )
        require(
            self.weight_decay >= 0,
            f"buffer.step.weight_decay must not be negative, got {self.weight_decay}.",
        )
        require(
            0 < self.decay <= 1,
            f"buffer.step.decay must be above 0 and at most 1, got {self.decay}.",
        )
        require(
            not (self.cosine and self.decay < 1),
            (
                f"buffer.step.cosine and buffer.step.decay {self.decay} both lower the rate; set "
                "decay to 1."
            ),
        )

    def update(self, model: nn.Module, epochs: int) -> Update:
        """The optimiser alone, for a training of `epochs` epochs.

        Steps that make their own gradients share it.
        """
        parameters = list(model.parameters())
        optimiser = torch.optim.SGD(
            parameters, self.lr, self.momentum, weight_decay=self.weight_decay
        )
        dropped = False

        def update(grads: Sequence[Tensor], epoch: int) -> None:
            nonlocal optimiser, dropped
            if self.decay < 1 and not dropped and epoch >= epochs // 2 + 2:
                # a new optimiser, as published: the momentum starts again
                optimiser = torch.optim.SGD(
                    parameters, self.lr * self.decay, self.momentum, weight_decay=self.weight_decay
                )
                dropped = True
            if self.cosine:
                optimiser.param_groups[0]["lr"] = (
                    self.lr * (1 + math.cos(math.pi * epoch / epochs)) / 2
                )
            for parameter, grad in zip(parameters, grads, strict=True):
                parameter.grad = grad
            optimiser.step()

        return update

    def build(self, model: nn.Module, epochs: int) -> Step:
        """The step on `model` for a training of `epochs` epochs."""
        parameters = list(model.parameters())
        update = self.update(model, epochs)

        def step(images: Tensor, labels: Tensor, plain: Tensor, epoch: int) -> Tensor:
            loss = nn.functional.cross_entropy(model(images), labels)
            update(torch.autograd.grad(loss, parameters), epoch)
            return loss.detach()

        return step


@contextmanager
def statistics_kept(model: nn.Module) -> Iterator[None]:
    """Within the block BatchNorm normalises with the batch and keeps its running statistics.

    For a second forward pass of a training step.
    """
    norms = norms_with_statistics(model)
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
