"""The plain training step of an expert, and what all steps share."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from ddengine.learning.ensemble import Ensemble
from ddengine.models.norms import norms_with_statistics
from ddengine.recipe import require
from ddengine.system.configs import LATE
from ddengine.types import ExpertStep

# (augmented images, labels, the images before augmentation, epoch) -> loss before the step; of
# several views of each image, the augmented images are all of the first view, then of the next
PlainStep = Callable[[Tensor, Tensor, Tensor, int], Tensor]


class Kept(Protocol):
    """What keeps tensors between two batches."""

    def state(self) -> dict[str, Tensor]:
        """The tensors by name."""
        ...

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Be as when these were its `state`."""
        ...


@dataclass(frozen=True)
class Step:
    """A step that says what it keeps, so that the training of an expert can be continued."""

    once: PlainStep
    kept: Kept

    def __call__(self, images: Tensor, labels: Tensor, plain: Tensor, epoch: int) -> Tensor:
        """One step; returns the loss before it."""
        return self.once(images, labels, plain, epoch)


def optimiser_state(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The tensors that an optimiser keeps, as NUMBER.NAME by the number of the parameter."""
    tensors = {}
    for number, kept in optimiser.state_dict()["state"].items():
        for name, value in kept.items():
            if value is not None:  # a momentum of 0
                tensors[f"{number}.{name}"] = value
    return tensors


def restore_optimiser(optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Let an optimiser go on with what another one of the same parameters kept."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        number, _, name = key.partition(".")
        state.setdefault(int(number), {})[name] = value
    groups = optimiser.state_dict()["param_groups"]
    optimiser.load_state_dict({"state": state, "param_groups": groups})


class StepConfig(ExpertStep, Protocol):
    """The options of an expert's training step, as a frozen dataclass that subclasses this.

    Only `build` has no default.
    """

    @property
    def is_for_several(self) -> bool:
        """Whether `build_for_several` has several networks learn as one computation."""
        return False

    @property
    def views(self) -> int:
        """How many times each image of a batch is augmented."""
        return 1

    def build(self, model: nn.Module, epochs: int) -> Step | PlainStep:
        """The step on `model` for a training of `epochs` epochs.

        Torch's generator gives what in it starts at random, from a stream of the expert's own. An
        expert that was interrupted begins anew where the step is no `Step`.
        """
        ...

    def build_for_several(self, networks: Ensemble, epochs: int) -> Step:
        """The step on n networks as one computation, each of which learns as by `build`.

        Images and labels are (n, B, ...) there and losses (n,); networks draw nothing at random.
        Raises TypeError unless `is_for_several`.
        """
        raise TypeError(f"{type(self).__name__} trains one network at a time")


@dataclass(frozen=True, kw_only=True)
class Sgd(StepConfig):
    """SGD on the cross-entropy (MTT, Cazenavette et al., CVPR 2022)."""

    lr: float = 0.01
    momentum: float = 0.0
    weight_decay: float = 0.0
    decay: float = 1.0  # factor on the rate after epoch E // 2 + 1 of E; 0.1 is MTT's --decay
    cosine: bool = False  # the rate falls to 0 along half a cosine, epoch by epoch
    # factor on the rate from two thirds of the epochs on, and again from five sixths; 0.2 is IDC's
    thirds: float = field(default=1.0, metadata=LATE)

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
        require(
            0 < self.thirds <= 1,
            f"buffer.step.thirds must be above 0 and at most 1, got {self.thirds}.",
        )
        require(
            self.thirds == 1 or (self.decay == 1 and not self.cosine),
            f"buffer.step.thirds {self.thirds} lowers the rate, and so does buffer.step."
            f"{'cosine' if self.cosine else 'decay'}; leave one of them out.",
        )

    def lr_in(self, epoch: int, epochs: int) -> float:
        """The rate in an epoch, counted from 0, of so many; but for what `decay` makes of it."""
        if self.cosine:
            return self.lr * (1 + math.cos(math.pi * epoch / epochs)) / 2
        drops = (3 * epoch >= 2 * epochs) + (6 * epoch >= 5 * epochs)
        return self.lr * self.thirds**drops

    def update(self, model: nn.Module, epochs: int) -> "SgdUpdate":
        """The optimiser alone, for a training of `epochs` epochs.

        Steps that make their own gradients share it.
        """
        return SgdUpdate(self, list(model.parameters()), epochs)

    def build(self, model: nn.Module, epochs: int) -> Step:
        """The step on `model` for a training of `epochs` epochs."""
        parameters = list(model.parameters())
        update = self.update(model, epochs)

        def step(images: Tensor, labels: Tensor, plain: Tensor, epoch: int) -> Tensor:
            loss = nn.functional.cross_entropy(model(images), labels)
            update(torch.autograd.grad(loss, parameters), epoch)
            return loss.detach()

        return Step(step, update)

    @property
    def is_for_several(self) -> bool:
        """Yes, as updates are elementwise; of a subclass nobody knows whether its `build` is."""
        return type(self) is Sgd

    def build_for_several(self, networks: Ensemble, epochs: int) -> Step:
        """The step on stacked networks, of which each has the gradient of its own loss."""
        parameters = list(networks.parameters().values())
        update = SgdUpdate(self, parameters, epochs)

        def step(images: Tensor, labels: Tensor, plain: Tensor, epoch: int) -> Tensor:
            logits = networks(images).flatten(0, 1)
            each = nn.functional.cross_entropy(logits, labels.flatten(), reduction="none")
            losses = each.view(labels.shape).mean(1)
            update(torch.autograd.grad(losses.sum(), parameters), epoch)
            return losses.detach()

        return Step(step, update)


class SgdUpdate(Kept):
    """Updates of a network by SGD, called with (gradients by parameter, epoch)."""

    def __init__(self, config: Sgd, parameters: Sequence[Tensor], epochs: int):
        """For a training of `epochs` epochs."""
        self._config, self._parameters, self._epochs = config, parameters, epochs
        self._dropped = False
        self._optimiser = self._new(config.lr)

    def _new(self, lr: float) -> torch.optim.SGD:
        config = self._config
        return torch.optim.SGD(
            self._parameters, lr, config.momentum, weight_decay=config.weight_decay
        )

    def _drop(self) -> None:
        # a new optimiser, as published: the momentum starts again
        self._optimiser = self._new(self._config.lr * self._config.decay)
        self._dropped = True

    def __call__(self, grads: Sequence[Tensor], epoch: int) -> None:
        """One update."""
        config, epochs = self._config, self._epochs
        if config.decay < 1 and not self._dropped and epoch >= epochs // 2 + 2:
            self._drop()
        if config.cosine or config.thirds < 1:
            self._optimiser.param_groups[0]["lr"] = config.lr_in(epoch, epochs)
        for parameter, grad in zip(self._parameters, grads, strict=True):
            parameter.grad = grad
        self._optimiser.step()

    def state(self) -> dict[str, Tensor]:
        """The momentum, and whether the rate has dropped."""
        return optimiser_state(self._optimiser) | {"dropped": torch.tensor(self._dropped)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on with them."""
        tensors = dict(state)
        if tensors.pop("dropped"):
            self._drop()
        restore_optimiser(self._optimiser, tensors)


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
