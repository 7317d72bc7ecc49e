"""Training one expert."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ddengine.data import Data
from ddengine.learning import augment, training
from ddengine.learning.flat import flatten, flatten_buffers
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


def train_expert(
    model: nn.Module,
    data: Data,
    config: BufferConfig,
    seed: int,
    expert: int,
    precision: Precision = "fp32",
    on_epoch: Callable[[str], None] | None = None,
) -> Trajectory:
    """Train `model` in place and return its snapshots, independent of later training.

    Order and augmentation of expert i, epoch e follow from (seed, i, e) alone. Raises UserError
    when the loss stops being finite.
    """
    model.train()
    step = config.step.build(model, config.epochs)
    kept, params, buffers = set(config.kept_epochs()), [], []
    accuracies: list[float] = []
    losses: list[float] = []
    device, dropout = data.train.device, any(map(is_dropout, model.modules()))

    def snapshot(epoch: int) -> None:
        if epoch in kept:
            params.append(flatten(model).cpu())
            flat = flatten_buffers(model)
            if flat is not None:
                buffers.append(flat.cpu())

    snapshot(0)
    for epoch in range(config.epochs):
        total = torch.zeros((), device=device)
        for i, index in enumerate(
            training.epoch_batches(
                len(data.train), config.batch, generator(seed, "expert", expert, "order", epoch)
            )
        ):
            images, labels = data.train.batch(index)
            draw = augment.sample(
                config.augment, len(index), generator(seed, "expert", expert, "augment", epoch, i)
            ).to(device)
            augmented = augment.apply(config.augment, images, draw)
            own_stream = (
                scoped(generator(seed, "expert", expert, "dropout", epoch, i))
                if dropout
                else nullcontext()
            )
            with autocast(device, precision), own_stream:
                total += step(augmented, labels, images, epoch) * len(index)
        losses.append(float(total) / len(data.train))
        if not torch.isfinite(total) or not flatten(model).isfinite().all():
            raise UserError(
                f"The loss of expert {expert} was not finite in epoch {epoch + 1}; lower the "
                "learning rate in buffer.step."
            )
        snapshot(epoch + 1)
        if data.validation is not None:
            accuracy = training.accuracy(model, data.validation, precision)
            if accuracy is None:
                raise UserError(
                    f"Expert {expert} says nothing finite of validation images after epoch "
                    f"{epoch + 1}; lower the rate in buffer.step."
                )
            accuracies.append(accuracy)
            model.train()
        if on_epoch is not None:
            on_epoch(
                f"expert {expert}: loss {losses[-1]:.3f}"
                + (f", validation {accuracies[-1]:.3f}" if accuracies else "")
            )
    metrics = {"validation_accuracy": accuracies, "train_loss": losses}
    return Trajectory(torch.stack(params), torch.stack(buffers) if buffers else None, metrics)
