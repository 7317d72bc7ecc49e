"""Training one expert."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn

from buffers.steps import PlainStep, Step
from buffers.unfinished import Checkpoint, Progress
from ddengine.data import Data, RealSet
from ddengine.learning import augment, training
from ddengine.learning.flat import flatten, flatten_buffers
from ddengine.learning.last_batch import check_last_batch
from ddengine.models.dropout import is_dropout
from ddengine.recipe import BufferConfig
from ddengine.system import files, log, signals
from ddengine.system.errors import UserError
from ddengine.system.rng import generator, scoped
from ddengine.system.runtime import Precision, autocast

MEASURED = 0.5  # seconds of training steps that are timed, at least ...
MEASURED_STEPS = 5  # ... but so many steps at most


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

    def tensors(self) -> dict[str, Tensor]:
        """Those taken so far, by name."""
        taken = {}
        for name, rows in (("params", self._params), ("buffers", self._buffers)):
            if rows:
                taken[name] = torch.stack(rows)
        return taken

    def restore(self, taken: Mapping[str, Tensor]) -> None:
        """Go on with what `tensors` returned."""
        self._params = list(taken["params"].unbind()) if "params" in taken else []
        self._buffers = list(taken["buffers"].unbind()) if "buffers" in taken else []

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
    checkpoint: Checkpoint | None = None,
    ranks: Tensor | None = None,
) -> Trajectory:
    """Train `model` in place and return its snapshots, independent of later training.

    Order and augmentation of expert i, epoch e follow from (config.seed, i, e) alone. With a
    `checkpoint` it goes on where that was written, and writes it now and then. `ranks` (N,) are
    what a curriculum chooses the images of an epoch by; None: each sees all. Raises UserError when
    the loss stops being finite.
    """
    if ranks is None:  # else the numbers of each epoch were checked before there were ranks
        check_last_batch(model, data.train, config.batch, "buffer.batch")
    model.train()
    with scoped(generator(config.seed, "expert", expert, "step")):
        step = config.step.build(model, config.epochs)
    run = _Training(model, step, data, config, expert, precision, checkpoint, ranks)
    run.begin(on_epoch)
    with signals.at_step_ends():
        while run.progress.epoch < config.epochs:
            said = run.epoch()
            if on_epoch is not None:
                on_epoch(said)
    done = run.progress
    metrics = {"validation_accuracy": done.accuracies, "train_loss": done.losses}
    return run.snapshots.trajectory(metrics)


def seconds_of_batches(
    model: nn.Module, data: Data, config: BufferConfig, precision: Precision
) -> float:
    """What a training step of `model` takes, which it is changed by, in seconds of the clock.

    The least of a few, because the first is slower; of long ones the first alone.
    """
    model.train()
    with scoped(generator(config.seed, "expert", 0, "step")):
        step = config.step.build(model, config.epochs)
    run = _Training(model, step, data, config, 0, precision, None, None)
    index = torch.arange(min(config.batch, len(data.train)))
    seconds: list[float] = []
    while sum(seconds) < MEASURED and len(seconds) < MEASURED_STEPS:
        start = time.perf_counter()
        run._batch(index)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


class _Training:
    """The training of one expert, and how far it is."""

    def __init__(
        self,
        model: nn.Module,
        step: Step | PlainStep,
        data: Data,
        config: BufferConfig,
        expert: int,
        precision: Precision,
        checkpoint: Checkpoint | None,
        ranks: Tensor | None,
    ):
        self._model = model
        self._step = step
        self._data = data
        self._config = config
        self._expert = expert
        self._ranks = ranks
        self._precision: Precision = precision
        # a step that does not say what it keeps cannot go on
        self._checkpoint = checkpoint if isinstance(step, Step) else None
        self._dropout = any(map(is_dropout, model.modules()))
        self._total = torch.zeros((), device=data.train.device)  # of the losses of this epoch
        self.progress = Progress()
        self.snapshots = _Snapshots(model, config.kept_epochs())

    def begin(self, on_epoch: Callable[[str], None] | None) -> None:
        """Start anew, or where the checkpoint is; `on_epoch` is told of epochs of before."""
        written = None if self._checkpoint is None else self._checkpoint.read()
        if written is None:
            self.snapshots.take(0)
            return
        tensors, self.progress = written
        try:
            self._restore(tensors)
        except (KeyError, IndexError, RuntimeError) as error:
            assert self._checkpoint is not None
            said = str(error).partition("\n")[0]
            raise files.damaged(self._checkpoint.path, f"not of this network: {said}") from None
        at = f"epoch {self.progress.epoch + 1} of {self._config.epochs}"
        log.say(f"expert {self._expert} goes on in {at}")
        for _ in range(self.progress.epoch):
            if on_epoch is not None:
                on_epoch("")

    def epoch(self) -> str:
        """Train the epoch that `progress` says, or what is left of it; returns what came of it."""
        data, progress, expert = self._data, self.progress, self._expert
        order = generator(self._config.seed, "expert", expert, "order", progress.epoch)
        seen = self._seen(progress.epoch)
        batches = list(training.epoch_batches(len(seen), self._config.batch, order))
        while progress.batch < len(batches):
            self._batch(seen[batches[progress.batch]])
            progress.batch += 1
            self._keep()
        progress.losses.append(float(self._total) / len(seen))
        if not torch.isfinite(self._total) or not flatten(self._model).isfinite().all():
            raise UserError(
                f"The loss of expert {expert} was not finite in epoch {progress.epoch + 1}; lower "
                "the learning rate in buffer.step."
            )
        said = f"expert {expert}: loss {progress.losses[-1]:.3f}"
        if data.validation is not None and self._config.step.reads_labels:
            accuracy = _validated(
                self._model, data.validation, self._precision, expert, progress.epoch
            )
            progress.accuracies.append(accuracy)
            said += f", validation {accuracy:.3f}"
        self._end_epoch()
        return said

    def _seen(self, epoch: int) -> Tensor:
        """The indices (n,) of the images that an epoch sees, on the CPU."""
        if self._ranks is None:
            return torch.arange(len(self._data.train))
        return self._config.curriculum.seen(self._ranks, epoch)

    def _end_epoch(self) -> None:
        progress = self.progress
        progress.epoch += 1
        progress.batch = 0
        self._total = torch.zeros_like(self._total)
        self.snapshots.take(progress.epoch)

    def _batch(self, index: Tensor) -> None:
        """One step on the images at `index` (B,), with random numbers of their own."""
        data, seed, expert = self._data, self._config.seed, self._expert
        epoch, i = self.progress.epoch, self.progress.batch
        images, labels = data.train.batch(index)
        rng = generator(seed, "expert", expert, "augment", epoch, i)
        augmented = _augmented(self._config, images, rng)
        stream = nullcontext()
        if self._dropout:
            stream = scoped(generator(seed, "expert", expert, "dropout", epoch, i))
        with autocast(data.train.device, self._precision), stream:
            self._total += self._step(augmented, labels, images, epoch) * len(index)

    def _keep(self) -> None:
        """Write a checkpoint where one is due, and end where a signal asks for it."""
        checkpoint, asked = self._checkpoint, signals.is_asked()
        if checkpoint is not None and (asked or checkpoint.is_due()):
            checkpoint.write(self._tensors(), self.progress)
        if asked:
            raise signals.stopped(f"in epoch {self.progress.epoch + 1} of expert {self._expert}")

    def _tensors(self) -> dict[str, Tensor]:
        """All that training has changed, by name."""
        assert isinstance(self._step, Step)
        groups = {
            "model": self._model.state_dict(),
            "step": self._step.kept.state(),
            "snapshots": self.snapshots.tensors(),
            "sum": {"losses": self._total},
        }
        tensors = {}
        for group, named in groups.items():
            for name, tensor in named.items():
                tensors[f"{group}/{name}"] = tensor
        return tensors

    def _restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on with what `_tensors` returned."""
        assert isinstance(self._step, Step)
        groups: dict[str, dict[str, Tensor]] = {"model": {}, "step": {}, "snapshots": {}, "sum": {}}
        for key, tensor in tensors.items():
            group, _, name = key.partition("/")
            groups[group][name] = tensor
        self._model.load_state_dict(groups["model"])
        self._step.kept.restore(groups["step"])
        self.snapshots.restore(groups["snapshots"])
        self._total = groups["sum"]["losses"].to(self._total.device)


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
