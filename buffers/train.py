"""Training one expert."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn

from buffers.steps import Step
from ddengine.data import Data, RealSet
from ddengine.learning import augment, training
from ddengine.learning.flat import flatten, flatten_buffers
from ddengine.learning.last_batch import check_last_batch
from ddengine.models.dropout import is_dropout
from ddengine.recipe import BufferConfig
from ddengine.system.errors import UserError
from ddengine.system.rng import generator, scoped
from ddengine.system.runtime import Precision, autocast


@dataclass(frozen=True)
class Trajectory:
    """What is stored of an expert."""

    params: Tensor  # (kept epochs, P)
    buffers: Tensor | None  # (kept epochs, Q)
    metrics: dict[str, Any]  # validation accuracy and mean loss by epoch


class _Snapshots:
    """The epochs of a network that are kept, as vectors on the CPU."""

    def __init__(self, model: nn.Module, kept: Sequence[int]):
        self._model = model
        self._kept = set(kept)
        self._params: list[Tensor] = []
        self._buffers: list[Tensor] = []

    def take(self, epoch: int) -> None:
        """Copy the network as it is after `epoch`, where that is kept."""
        if epoch not in self._kept:
            return
        self._params.append(flatten(self._model).cpu())
        flat = flatten_buffers(self._model)
        if flat is not None:
            self._buffers.append(flat.cpu())

    def trajectory(self, metrics: dict[str, Any]) -> Trajectory:
        """What was kept."""
        buffers = torch.stack(self._buffers) if self._buffers else None
        return Trajectory(torch.stack(self._params), buffers, metrics)


def train_expert(
    model: nn.Module,
    data: Data,
    config: BufferConfig,
    expert: int,
    precision: Precision = "fp32",
    on_epoch: Callable[[str], None] | None = None,
) -> Trajectory:
    """Train `model` in place and return its snapshots, independent of later training.

    Order and augmentation of expert i, epoch e follow from (config.seed, i, e) alone. Raises
    UserError when the loss stops being finite.
    """
    check_last_batch(model, data.train, config.batch, "buffer.batch")
    model.train()
    with scoped(generator(config.seed, "expert", expert, "step")):
        step = config.step.build(model, config.epochs)
    snapshots = _Snapshots(model, config.kept_epochs())
    accuracies: list[float] = []
    losses: list[float] = []
    snapshots.take(0)
    for epoch in range(config.epochs):
        total = _epoch(model, step, data, config, (expert, epoch), precision)
        losses.append(float(total) / len(data.train))
        if not torch.isfinite(total) or not flatten(model).isfinite().all():
            raise UserError(
                f"The loss of expert {expert} was not finite in epoch {epoch + 1}; lower the "
                "learning rate in buffer.step."
            )
        snapshots.take(epoch + 1)
        said = f"expert {expert}: loss {losses[-1]:.3f}"
        if data.validation is not None and config.step.reads_labels:
            accuracies.append(_validated(model, data.validation, precision, expert, epoch))
            said += f", validation {accuracies[-1]:.3f}"
        if on_epoch is not None:
            on_epoch(said)
    return snapshots.trajectory({"validation_accuracy": accuracies, "train_loss": losses})


def _epoch(
    model: nn.Module,
    step: Step,
    data: Data,
    config: BufferConfig,
    number: tuple[int, int],
    precision: Precision,
) -> Tensor:
    """One pass over the training images; returns the sum of the losses (), on the device.

    `number` is (expert, epoch), of which with `config.seed` all random numbers are made.
    """
    seed = config.seed
    expert, epoch = number
    device = data.train.device
    dropout = any(map(is_dropout, model.modules()))
    total = torch.zeros((), device=device)
    order = generator(seed, "expert", expert, "order", epoch)
    batches = training.epoch_batches(len(data.train), config.batch, order)
    for i, index in enumerate(batches):
        images, labels = data.train.batch(index)
        rng = generator(seed, "expert", expert, "augment", epoch, i)
        augmented = _augmented(config, images, rng)
        stream = nullcontext()
        if dropout:
            stream = scoped(generator(seed, "expert", expert, "dropout", epoch, i))
        with autocast(device, precision), stream:
            total += step(augmented, labels, images, epoch) * len(index)
    return total


def _augmented(config: BufferConfig, images: Tensor, rng: Generator) -> Tensor:
    """All views (views * B, C, H, W) of images (B, C, H, W), one view after another."""
    views = []
    for _ in range(config.step.views):
        draw = augment.sample(config.augment, len(images), rng).to(images.device)
        views.append(augment.apply(config.augment, images, draw))
    return torch.cat(views)


def _validated(
    model: nn.Module, images: RealSet, precision: Precision, expert: int, epoch: int
) -> float:
    """Accuracy on the validation images; the network goes on in training mode.

    Raises UserError for a network that says nothing finite.
    """
    accuracy = training.accuracy(model, images, precision)
    if accuracy is None:
        raise UserError(
            f"Expert {expert} says nothing finite of validation images after epoch "
            f"{epoch + 1}; lower the rate in buffer.step."
        )
    model.train()
    return accuracy
