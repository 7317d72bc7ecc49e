"""Training one expert, or several as one computation."""

import math
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
from ddengine.learning.ensemble import Ensemble
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
    """The epochs of networks that are kept, as vectors on the CPU."""

    def __init__(self, kept: Sequence[int], networks: int):
        self._kept = set(kept)
        self._networks = networks
        self._params: list[Tensor] = []  # (networks, P) of each epoch
        self._buffers: list[Tensor] = []  # (networks, Q)

    def take(self, epoch: int, networks: Sequence[nn.Module]) -> None:
        """Copy the networks as they are after `epoch`, where that is kept."""
        if epoch not in self._kept:
            return
        self._params.append(torch.stack(list(map(flatten, networks))).cpu())
        flat = [row for row in map(flatten_buffers, networks) if row is not None]
        if flat:
            self._buffers.append(torch.stack(flat).cpu())

    def tensors(self) -> dict[str, Tensor]:
        """Those taken so far, by name."""
        taken = {}
        for name, rows in (("params", self._params), ("buffers", self._buffers)):
            if rows:
                taken[name] = torch.stack(rows)
        return taken

    def restore(self, taken: Mapping[str, Tensor]) -> None:
        """Go on with what `tensors` returned."""
        for name, rows in (("params", self._params), ("buffers", self._buffers)):
            rows.clear()
            for row in taken.get(name, ()):  # (P,) of one network, as it was written before
                rows.append(row.reshape(self._networks, -1))

    def trajectory(self, number: int, metrics: dict[str, Any]) -> Trajectory:
        """What was kept of one of the networks."""
        params = torch.stack([row[number] for row in self._params])
        buffers = None
        if self._buffers:
            buffers = torch.stack([row[number] for row in self._buffers])
        return Trajectory(params, buffers, metrics)


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
    of_one = train_experts(
        {expert: model}, [expert], data, config, precision, on_epoch, checkpoint, ranks
    )
    return of_one[expert]


def train_experts(
    networks: Mapping[int, nn.Module],
    wanted: Sequence[int],
    data: Data,
    config: BufferConfig,
    precision: Precision = "fp32",
    on_epoch: Callable[[str], None] | None = None,
    checkpoint: Checkpoint | None = None,
    ranks: Tensor | None = None,
) -> dict[int, Trajectory]:
    """Train the networks of experts in place as one computation; the snapshots of those `wanted`.

    Each has the images, in the order and with the augmentation, that it has alone, so its numbers
    are those of `train_expert` but for rounding, which follows from how many there are. `on_epoch`
    is told of every epoch of those wanted, and they alone have to stay finite; the others are
    there so that it is always as many. Several networks draw nothing at random, and their step
    `is_for_several`.
    """
    if ranks is None:  # else the numbers of each epoch were checked before there were ranks
        one = next(iter(networks.values()))
        check_last_batch(one, data.train, config.batch, "buffer.batch")
    run = _Training(networks, wanted, data, config, precision, checkpoint, ranks)
    run.begin(on_epoch)
    with signals.at_step_ends():
        while run.progress.epoch < config.epochs:
            for said in run.epoch():
                if on_epoch is not None:
                    on_epoch(said)
    return {expert: run.trajectory(expert) for expert in wanted}


def seconds_of_batches(
    networks: Sequence[nn.Module],
    data: Data,
    config: BufferConfig,
    precision: Precision,
    untimed: int = 0,
) -> float:
    """What a training step of networks takes, which they are changed by, in seconds of the clock.

    The least of a few, because the first is slower; of long ones the first alone. Before them are
    some that are not timed.
    """
    of_experts = dict(enumerate(networks))
    run = _Training(of_experts, list(of_experts), data, config, precision, None, None)
    index = torch.arange(min(config.batch, len(data.train))).expand(len(networks), -1)
    for _ in range(untimed):
        run.timed(index)
    seconds: list[float] = []
    while sum(seconds) < MEASURED and len(seconds) < MEASURED_STEPS:
        seconds.append(run.timed(index))
    return min(seconds)


class _Training:
    """The training of one expert, or of several as one computation, and how far it is."""

    def __init__(
        self,
        networks: Mapping[int, nn.Module],
        wanted: Sequence[int],
        data: Data,
        config: BufferConfig,
        precision: Precision,
        checkpoint: Checkpoint | None,
        ranks: Tensor | None,
    ):
        for network in networks.values():
            network.train()
        self._experts = list(networks)
        self._wanted = wanted
        self._networks = Ensemble(list(networks.values()))
        self._step = _step_of(self._networks, config, self._experts)
        self._data = data
        self._config = config
        self._ranks = ranks
        self._precision: Precision = precision
        # a step that does not say what it keeps cannot go on
        self._checkpoint = checkpoint if isinstance(self._step, Step) else None
        self._dropout = any(map(is_dropout, self._networks.networks[0].modules()))
        # of the losses of this epoch, by expert
        self._total = torch.zeros(len(networks), device=data.train.device)
        self.progress = Progress()
        self._snapshots = _Snapshots(config.kept_epochs(), len(networks))

    def begin(self, on_epoch: Callable[[str], None] | None) -> None:
        """Start anew, or where the checkpoint is; `on_epoch` is told of epochs of before."""
        written = None if self._checkpoint is None else self._checkpoint.read()
        if written is None:
            self._snapshots.take(0, self._networks.networks)
            return
        tensors, self.progress = written
        try:
            self._restore(tensors)
        except (KeyError, IndexError, RuntimeError) as error:
            assert self._checkpoint is not None
            said = str(error).partition("\n")[0]
            raise files.damaged(self._checkpoint.path, f"not of this network: {said}") from None
        at = f"epoch {self.progress.epoch + 1} of {self._config.epochs}"
        goes = "goes" if len(self._wanted) == 1 else "go"
        log.say(f"{self._name()} {goes} on in {at}")
        for _ in range(self.progress.epoch * len(self._wanted)):
            if on_epoch is not None:
                on_epoch("")

    def _name(self) -> str:
        """The experts in a sentence."""
        numbers = ", ".join(map(str, self._wanted))
        return f"expert {numbers}" if len(self._wanted) == 1 else f"experts {numbers}"

    def epoch(self) -> list[str]:
        """Train the epoch that `progress` says, or what is left of it.

        Returns what came of it, for each expert that is wanted.
        """
        progress = self.progress
        seen = self._seen(progress.epoch)
        batches = self._batches(len(seen))
        while progress.batch < len(batches):
            self._batch(seen[batches[progress.batch]])
            progress.batch += 1
            self._keep()
        networks = self._networks.unstack()
        losses = [total / len(seen) for total in self._total.tolist()]
        accuracies: list[float] = []
        for expert, network, loss in zip(self._experts, networks, losses, strict=True):
            self._check(expert, network, loss)
        if self._data.validation is not None and self._config.step.reads_labels:
            for expert, network in zip(self._experts, networks, strict=True):
                accuracies.append(self._validated(expert, network, self._data.validation))
        progress.losses += map(_finite, losses)
        progress.accuracies += accuracies
        self._end_epoch(networks)
        return self._said(losses, accuracies)

    def _batches(self, num: int) -> list[Tensor]:
        """The batches (networks, B) of an epoch that sees so many images, as their numbers."""
        orders = []
        for expert in self._experts:
            order = generator(self._config.seed, "expert", expert, "order", self.progress.epoch)
            orders.append(training.epoch_batches(num, self._config.batch, order))
        return [torch.stack(indices) for indices in zip(*orders, strict=True)]

    def _seen(self, epoch: int) -> Tensor:
        """The indices (n,) of the images that an epoch sees, on the CPU."""
        if self._ranks is None:
            return torch.arange(len(self._data.train))
        return self._config.curriculum.seen(self._ranks, epoch)

    def _check(self, expert: int, network: nn.Module, loss: float) -> None:
        """Raise UserError where an expert that is wanted has not stayed finite."""
        if expert not in self._wanted:
            return
        if not math.isfinite(loss) or not flatten(network).isfinite().all():
            raise UserError(
                f"The loss of expert {expert} was not finite in epoch {self.progress.epoch + 1}; "
                "lower the learning rate in buffer.step."
            )

    def _validated(self, expert: int, network: nn.Module, images: RealSet) -> float:
        """Accuracy on the validation images; the network goes on in training mode.

        Raises UserError for a network that is wanted and says nothing finite.
        """
        accuracy = training.accuracy(network, images, self._precision)
        if accuracy is None and expert in self._wanted:
            raise UserError(
                f"Expert {expert} says nothing finite of validation images after epoch "
                f"{self.progress.epoch + 1}; lower the rate in buffer.step."
            )
        network.train()
        return _finite(accuracy)

    def _said(self, losses: Sequence[float], accuracies: Sequence[float]) -> list[str]:
        """What came of an epoch, for each expert that is wanted."""
        said = []
        for number, expert in enumerate(self._experts):
            line = f"expert {expert}: loss {losses[number]:.3f}"
            if accuracies:
                line += f", validation {accuracies[number]:.3f}"
            if expert in self._wanted:
                said.append(line)
        return said

    def _end_epoch(self, networks: Sequence[nn.Module]) -> None:
        progress = self.progress
        progress.epoch += 1
        progress.batch = 0
        self._total = torch.zeros_like(self._total)
        self._snapshots.take(progress.epoch, networks)

    def _batch(self, index: Tensor) -> None:
        """One step on the images at `index` (networks, B), with random numbers of their own."""
        data, seed, experts = self._data, self._config.seed, self._experts
        epoch, i = self.progress.epoch, self.progress.batch
        images, labels = data.train.batch(index.flatten())
        rngs = [generator(seed, "expert", expert, "augment", epoch, i) for expert in experts]
        augmented = _augmented(self._config, images, rngs)
        plain = images.unflatten(0, index.shape)
        stream = nullcontext()
        if self._dropout:  # of one network: several draw nothing at random
            stream = scoped(generator(seed, "expert", experts[0], "dropout", epoch, i))
        with autocast(data.train.device, self._precision), stream:
            losses = self._step(augmented, labels.view(index.shape), plain, epoch)
            self._total += losses * index.shape[1]

    def timed(self, index: Tensor) -> float:
        """Seconds of the clock that one step on these images takes, until the device is done."""
        start = time.perf_counter()
        self._batch(index)
        self._total.tolist()  # which waits for the device
        return time.perf_counter() - start

    def trajectory(self, expert: int) -> Trajectory:
        """What is stored of an expert."""
        number, num = self._experts.index(expert), len(self._experts)
        metrics = {
            "validation_accuracy": self.progress.accuracies[number::num],
            "train_loss": self.progress.losses[number::num],
        }
        return self._snapshots.trajectory(number, metrics)

    def _keep(self) -> None:
        """Write a checkpoint where one is due, and end where a signal asks for it."""
        checkpoint, asked = self._checkpoint, signals.is_asked()
        if checkpoint is not None and (asked or checkpoint.is_due()):
            checkpoint.write(self._tensors(), self.progress)
        if asked:
            raise signals.stopped(f"in epoch {self.progress.epoch + 1} of {self._name()}")

    def _tensors(self) -> dict[str, Tensor]:
        """All that training has changed, by name."""
        assert isinstance(self._step, Step)
        groups = {
            "model": self._networks.state(),
            "step": self._step.kept.state(),
            "snapshots": self._snapshots.tensors(),
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
        self._networks.restore(groups["model"])
        self._step.kept.restore(groups["step"])
        self._snapshots.restore(groups["snapshots"])
        # a number of one network, as it was written before
        self._total = groups["sum"]["losses"].reshape(self._total.shape).to(self._total.device)


def _step_of(networks: Ensemble, config: BufferConfig, experts: Sequence[int]) -> Step | PlainStep:
    """The step on images (networks, B, C, H, W) and labels (networks, B): losses (networks,)."""
    if len(experts) > 1:
        return config.step.build_for_several(networks, config.epochs)
    with scoped(generator(config.seed, "expert", experts[0], "step")):
        step = config.step.build(networks.networks[0], config.epochs)

    def of_one(images: Tensor, labels: Tensor, plain: Tensor, epoch: int) -> Tensor:
        return step(images[0], labels[0], plain[0], epoch).unsqueeze(0)

    return Step(of_one, step.kept) if isinstance(step, Step) else of_one


def _augmented(config: BufferConfig, images: Tensor, rngs: Sequence[Generator]) -> Tensor:
    """All views (n, views * B, C, H, W) of images (n B, C, H, W), one view after another.

    The images of each network are augmented by numbers of a generator of its own.
    """
    views = []
    for _ in range(config.step.views):
        draws = []
        for rng in rngs:
            draws.append(augment.sample(config.augment, len(images) // len(rngs), rng))
        draw = augment.concatenate(draws).to(images.device)
        of_view = augment.apply(config.augment, images, draw)
        views.append(of_view.unflatten(0, (len(rngs), -1)))
    return torch.cat(views, 1)


def _finite(value: float | None) -> float:
    """A number as it is stored; 0 of a network that is not wanted, and was not finite."""
    return value if value is not None and math.isfinite(value) else 0.0
