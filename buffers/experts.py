"""The experts of a store: train each that is missing, write each as it is done."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Generator, nn

from buffers import store
from buffers.pretrained import Pretrained
from buffers.train import Trajectory, train_expert
from ddengine.data import Data
from ddengine.experts import OwnTraining
from ddengine.learning import training
from ddengine.learning.flat import flatten, flatten_buffers
from ddengine.recipe import BufferConfig, DataConfig, require
from ddengine.system import dist, log
from ddengine.system.rng import generator
from ddengine.system.runtime import Precision


def generate(  # long: arguments, and what they mean
    data: Data,
    data_config: DataConfig,
    config: BufferConfig,
    model: str,
    new_model: Callable[[Generator], nn.Module],
    folder: Path,
    *,
    precision: Precision = "fp32",
) -> None:
    """Fill the store in `folder` with `config.num_experts` experts, leaving finished ones alone.

    With torchrun each rank trains its share. `model` is the network's name, `new_model` builds it.
    Raises UserError when the folder holds a store of other settings.
    """
    if isinstance(config.step, OwnTraining):
        _check_alone(config, "Generative parts")
    if isinstance(config.step, Pretrained):
        _check_alone(config, "Pretrained weights")
        # before there is a folder
        config.step.find(new_model(generator(config.seed, "shapes")), model)
    if config.store == "convex":
        _check_convex(config, new_model(generator(config.seed, "shapes")), model)
    content = store.identity(data.train.digest, data_config, config, model, precision)
    if dist.rank() == 0:
        shapes = store.shapes_of(new_model(generator(config.seed, "shapes")))
        kept, preprocess = config.kept_epochs(), data.train.preprocess
        store.open_for_writing(folder, content, kept, preprocess, model=model, shapes=shapes)
        for expert in store.remove_damaged(folder):
            log.say(f"expert {expert} in {folder} is damaged, and is trained again")
    dist.meet()
    done = store.finished(folder)
    mine = [i for i in dist.my_share(range(config.num_experts)) if i not in done]
    _say_done(len(done), len(mine), config.num_experts, folder)
    if isinstance(config.step, OwnTraining):
        if mine:
            _train_own(new_model, data, config, config.step, folder, precision)
        dist.meet()
        return
    each = config.epochs if config.step.trains else 1
    with log.progress("experts", len(mine) * each) as bar:
        for expert in mine:
            checkpoint = store.checkpoint(folder, expert)
            network = new_model(generator(config.seed, "expert", expert, "network"))
            network.to(data.train.device)
            if isinstance(config.step, Pretrained):
                trajectory = _pretrained(network, data, config.step, model, precision)
                bar.advance(f"expert {expert}")
            else:
                trajectory = train_expert(
                    network, data, config, expert, precision, bar.advance, checkpoint
                )
            metrics = trajectory.metrics | {"seconds": round(checkpoint.seconds(), 2)}
            store.write_expert(
                folder, expert, trajectory.params, trajectory.buffers, config.dtype, metrics
            )
            checkpoint.remove()
    dist.meet()


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
