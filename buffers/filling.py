"""A store that is being filled: what its experts are, and training some of them."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn

from buffers import curriculum, store
from buffers.pretrained import Pretrained
from buffers.train import Trajectory, train_experts
from buffers.unfinished import path_of
from ddengine.data import Data
from ddengine.experts import OwnTraining
from ddengine.learning import training
from ddengine.learning.flat import flatten, flatten_buffers
from ddengine.learning.last_batch import check_last_batch
from ddengine.models import build_model
from ddengine.recipe import BufferConfig, DataConfig, require
from ddengine.system import log, runtime
from ddengine.system.rng import generator
from ddengine.system.runtime import Precision


def network_maker(config: BufferConfig, model: str, data: Data) -> Callable[[Generator], nn.Module]:
    """What builds the experts of this name for images."""
    if isinstance(config.step, OwnTraining):
        return partial(config.step.new_model, data)
    return partial(build_model, model, data.image_shape, data.num_classes)


@dataclass(frozen=True, kw_only=True)
class Making:
    """The store in `folder`, which is filled with `config.num_experts` experts.

    `model` is the network's name, `new_model` builds it. `is_named`: the name says all that
    `new_model` does, wherever it is read.
    """

    data: Data
    data_config: DataConfig
    config: BufferConfig
    model: str
    new_model: Callable[[Generator], nn.Module]
    folder: Path
    precision: Precision = "fp32"
    is_named: bool = False

    def check(self) -> None:
        """Raise UserError for what its experts cannot be."""
        config = self.config
        store.check_no_others(self.folder)
        if isinstance(config.step, OwnTraining):
            _check_alone(config, "Generative parts")
        if isinstance(config.step, Pretrained):
            _check_alone(config, "Pretrained weights")
            config.step.find(self.new_model(generator(config.seed, "shapes")), self.model)
        require(
            config.curriculum is None or (config.step.trains and config.step.reads_labels),
            "buffer.curriculum orders images by how hard their classes are to learn, and this "
            "buffer.step trains no classifier; take buffer.step of another recipe.",
        )
        if config.curriculum is not None:
            train = self.data.train
            network = self.new_model(generator(config.seed, "shapes"))
            for num in config.curriculum.check(train.members, config.epochs):
                check_last_batch(network, train, config.batch, "buffer.batch", num)
        if config.store == "convex":
            _check_convex(config, self.new_model(generator(config.seed, "shapes")), self.model)

    def open(self, threads: int | None = None, together: int = 1) -> None:
        """Make the store ready. Raises UserError where the folder holds one of other settings.

        On so many `threads` each expert of a new store is trained; None: on those that there are.
        So many are trained `together`.
        """
        config, train = self.config, self.data.train
        content = store.identity(train.digest, self.data_config, config, self.model, self.precision)
        shapes = store.shapes_of(self.new_model(generator(config.seed, "shapes")))
        store.open_for_writing(
            self.folder,
            content,
            config.kept_epochs(),
            train.preprocess,
            model=self.model,
            shapes=shapes,
            threads=threads,
            together=together,
        )
        self._ranks()
        for expert in store.remove_damaged(self.folder):
            log.say(f"expert {expert} in {self.folder} is damaged, and is trained again")

    def _ranks(self) -> Tensor | None:
        """How hard each image is within its class, where epochs see images by that."""
        config = self.config
        if config.curriculum is None:
            return None
        train = self.data.train
        return curriculum.of_store(
            self.folder, config.curriculum, train, self.new_model, config.seed
        )

    def missing(self) -> list[int]:
        """The experts that it lacks."""
        done, missing = len(store.finished(self.folder)), self.unfinished
        _say_done(done, len(missing), self.config.num_experts, self.folder)
        return missing

    @property
    def unfinished(self) -> list[int]:
        """The experts that it lacks, whether or not there is a store."""
        done = store.finished(self.folder)
        return [i for i in range(self.config.num_experts) if i not in done]

    def grouped(self, experts: Iterable[int]) -> list[list[int]]:
        """Some experts in ascending order, those that are trained together in one list.

        With n together these are of [k n, (k + 1) n), whatever else is asked for or finished.
        """
        groups: dict[int, list[int]] = {}
        for expert in sorted(experts):
            groups.setdefault(expert // self.together, []).append(expert)
        return list(groups.values())

    @property
    def is_there(self) -> bool:
        """Whether there is a store."""
        return (self.folder / store.MANIFEST).is_file()

    @property
    def threads(self) -> int | None:
        """On which each expert is trained, as the store says; None: on those that there are."""
        if self.data.train.device.type != "cpu" or not self.is_there:
            return None
        return store.threads_of(self.folder)

    @property
    def together(self) -> int:
        """How many experts are one computation, as the store says."""
        return store.together_of(self.folder) if self.is_there else 1

    @property
    def epochs_each(self) -> int:
        """Epochs that an expert is trained for; 1 of one that is read."""
        return self.config.epochs if self.config.step.trains else 1

    def train(self, experts: Sequence[int]) -> None:
        """Train some of them in this process, and write each as it is done."""
        step = self.config.step
        if not experts:
            return
        if isinstance(step, OwnTraining):
            _train_own(self.new_model, self.data, self.config, step, self.folder, self.precision)
            return
        with log.progress("experts", len(experts) * self.epochs_each) as bar:
            for group in self.grouped(experts):
                self.train_some(group, bar.advance)

    def train_some(self, experts: Sequence[int], on_epoch: Callable[[str], None]) -> None:
        """Train experts of one group and write them; `on_epoch` is told what came of each epoch.

        The others of the group are trained with them and not written: as many networks as ever have
        the rounding that they ever have.
        """
        with runtime.on_threads(self.threads or torch.get_num_threads()):
            self._train(experts, on_epoch)

    def _train(self, experts: Sequence[int], on_epoch: Callable[[str], None]) -> None:
        checkpoint = store.checkpoint(self.folder, self._named_after(experts))
        networks = self._networks(experts[0])
        if isinstance(self.config.step, Pretrained):
            trajectories = {}
            for expert in experts:
                trajectories[expert] = _pretrained(
                    networks[expert], self.data, self.config.step, self.model, self.precision
                )
                on_epoch(f"expert {expert}")
        else:
            trajectories = train_experts(
                networks,
                experts,
                self.data,
                self.config,
                self.precision,
                on_epoch,
                checkpoint,
                ranks=self._ranks(),
            )
        # so that those of a store add up to what its trainings have taken
        seconds = {"seconds": round(checkpoint.seconds() / len(experts), 2)}
        for expert, trajectory in trajectories.items():
            self._write(expert, trajectory, seconds)
            store.checkpoint(self.folder, expert).remove()

    def _named_after(self, experts: Sequence[int]) -> int:
        """The expert of a group by whose number its checkpoint is called.

        That is the one that is written last, because checkpoints of finished experts are removed;
        where fewer were asked for when the training began, it was another.
        """
        begun = [expert for expert in experts if path_of(self.folder, expert).is_file()]
        return (begun or experts)[-1]

    def _networks(self, expert: int) -> dict[int, nn.Module]:
        """The networks that are trained together with that of an expert, as they start."""
        first = expert // self.together * self.together
        networks = {}
        for number in range(first, first + self.together):
            network = self.new_model(generator(self.config.seed, "expert", number, "network"))
            networks[number] = network.to(self.data.train.device)
        return networks

    def _write(self, expert: int, trajectory: Trajectory, seconds: dict[str, float]) -> None:
        metrics, dtype = trajectory.metrics | seconds, self.config.dtype
        params, buffers = trajectory.params, trajectory.buffers
        store.write_expert(self.folder, expert, params, buffers, dtype, metrics)


def _say_done(done: int, missing: int, num_experts: int, folder: Path) -> None:
    """Say how many experts are in the store already, where there are any."""
    if not done:
        return
    if missing:
        log.say(f"{done} of {num_experts} experts are finished in {folder}")
    else:
        log.say(f"all {num_experts} experts are in {folder} already")


def _check_convex(config: BufferConfig, network: nn.Module, model: str) -> None:
    """Raise UserError for networks and trainings of which nothing lies between two snapshots."""
    require(
        not isinstance(config.step, OwnTraining | Pretrained),
        "buffer.store convex is of a trajectory, and this network has none; set buffer.store "
        "snapshots.",
    )
    require(
        flatten_buffers(network) is None,
        f"buffer.store convex moves parameters along lines, and the running statistics of {model} "
        "would not go with them; take a network without BatchNorm, or buffer.store snapshots.",
    )


def _check_alone(config: BufferConfig, what: str) -> None:
    """Raise UserError for settings that what is one expert without a trajectory cannot have."""
    require(
        config.num_experts == 1,
        f"{what} make one expert, and buffer.num_experts is {config.num_experts}; set "
        "buffer.num_experts 1.",
    )
    require(
        config.keep == "last",
        f"{what} have no trajectory, and buffer.keep is {config.keep}; set buffer.keep last.",
    )


def _train_own(
    new_model: Callable[[Generator], nn.Module],
    data: Data,
    config: BufferConfig,
    step: OwnTraining,
    folder: Path,
    precision: Precision,
) -> None:
    """Train and store the expert that trains itself, which shows its own progress."""
    start = time.perf_counter()
    network = new_model(generator(config.seed, "expert", 0, "network"))
    network.to(data.train.device)
    measured = step.train(network, data, config.seed, folder, precision)
    metrics = {"validation_accuracy": [], "train_loss": []} | measured
    expert = _last_state(network, metrics | {"seconds": round(time.perf_counter() - start, 2)})
    store.write_expert(folder, 0, expert.params, expert.buffers, config.dtype, expert.metrics)
    step.clean(folder)


def _last_state(network: nn.Module, metrics: dict[str, Any]) -> Trajectory:
    """One snapshot of a network."""
    buffers = flatten_buffers(network)
    if buffers is not None:
        buffers = buffers.cpu().unsqueeze(0)
    return Trajectory(flatten(network).cpu().unsqueeze(0), buffers, metrics)


def _pretrained(
    network: nn.Module, data: Data, step: Pretrained, model: str, precision: Precision
) -> Trajectory:
    """The expert that comes out of a file: one snapshot, nothing trained."""
    facts = step.load(network, model)
    accuracies = []
    if data.validation is not None:
        accuracies.append(training.accuracy(network, data.validation, precision))
    metrics = {"validation_accuracy": accuracies, "train_loss": []} | facts
    return _last_state(network, metrics)
