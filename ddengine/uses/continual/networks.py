"""The network of a stage: what it is trained on, at which rate, and what it is right about."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn

from ddengine.data import RealSet
from ddengine.data.subset import of_classes
from ddengine.evaluation.rates import best_rate
from ddengine.learning import training
from ddengine.models import build_model
from ddengine.sets.synthetic import SyntheticSet
from ddengine.system import files, log
from ddengine.system.rng import generator
from ddengine.types import Batch, TrainingSet
from ddengine.uses.continual.context import Context, Stage
from ddengine.uses.continual.memories import decoded

FOLDER = "networks"  # in the work folder


@dataclass(frozen=True)
class Lesson:
    """What the network of a stage is trained on, and from where."""

    on: TrainingSet
    steps: int | None  # updates; None: those of the protocol
    start: nn.Module | None  # the network that goes on; None: a new one


class Balanced:
    """Real images of a stage, and a memory that is repeated.

    It is repeated until its classes have as many examples as the stage's, on average and about.
    """

    def __init__(self, real: RealSet, num_new: int, memory: TrainingSet, num_old: int):
        """Join the images of `num_new` new classes and the memory of `num_old` earlier ones."""
        times = max(1, round(len(real) / num_new / (len(memory) / num_old)))
        self.real, self.memory = real, memory
        old = len(real) + torch.arange(len(memory)).repeat(times)
        self.index = torch.cat([torch.arange(len(real)), old])

    def __len__(self) -> int:
        return len(self.index)

    def batch(self, index: Tensor) -> Batch:
        """The examples at `index` (B,), those of the stage first."""
        index = self.index[index]
        is_new = index < len(self.real)
        batches = []
        if is_new.any():
            batches.append(self.real.batch(index[is_new]))
        if not is_new.all():
            batches.append(self.memory.batch(index[~is_new] - len(self.real)))
        images = torch.cat([batch.images for batch in batches])
        return Batch(images, torch.cat([batch.targets for batch in batches]))


def memory_lesson(memory: SyntheticSet) -> Lesson:
    """A new network learns the memory alone."""
    return Lesson(decoded(memory), None, None)


def joint_lesson(context: Context, stage: Stage) -> Lesson:
    """A new network learns all real images of the classes seen so far."""
    real = of_classes(context.data.train, stage.seen)
    return Lesson(real, _num_updates(context, real), None)


def replay_lesson(
    context: Context, stage: Stage, before: SyntheticSet | None, start: nn.Module | None
) -> Lesson:
    """A network goes on with the real images of the stage and the memory of earlier ones."""
    real = of_classes(context.data.train, stage.classes)
    if before is None:
        return Lesson(real, _num_updates(context, real), start)
    num_new = len(stage.classes)
    on = Balanced(real, num_new, decoded(before), len(stage.seen) - num_new)
    return Lesson(on, _num_updates(context, on), start)


def _num_updates(context: Context, on: TrainingSet) -> int:
    protocol = context.protocol
    return min(training.num_updates(len(on), protocol), protocol.full_steps)


def train(context: Context, lesson: Lesson, lr: float, seed: int) -> nn.Module:
    """Train a network: a new one, or a copy of the one that goes on."""
    data, model = context.data, context.recipe.model

    def new_model(rng: Generator) -> nn.Module:
        if lesson.start is not None:
            return copy.deepcopy(lesson.start)
        return build_model(model, data.image_shape, data.num_classes, rng)

    networks = training.train_networks(
        new_model,
        [lesson.on],
        [seed],
        context.protocol,
        lr,
        context.device,
        steps=lesson.steps,
        precision=context.precision,
        labels="hard",
    )
    return networks[0]


def tested(
    context: Context, stage: Stage, lesson: Lesson, lr: float
) -> tuple[nn.Module, dict[str, float] | None]:
    """(the network of a stage, its correct test images of each class seen so far, by its name).

    Of a network that diverged nothing is counted: None.
    """
    data = context.data
    assert data.test is not None
    network = train(context, lesson, lr, context.seed_of("final", stage.repeat, stage.number))
    test = of_classes(data.test, stage.seen)
    classified = training.classified(network, test, context.precision)
    if classified.diverged:
        return network, None
    return network, {data.class_names[c]: classified.right[c] for c in stage.seen}


def choose_lr(context: Context, stage: Stage, lesson: Lesson) -> tuple[float, float]:
    """(learning rate, seconds): the best on the validation images of the classes seen so far."""
    if len(context.rates) == 1:
        return context.rates[0], 0.0
    assert context.data.validation is not None
    validation = of_classes(context.data.validation, stage.seen)
    num = context.protocol.search_networks
    seeds = [context.seed_of("search", stage.repeat, stage.number, i) for i in range(num)]
    tried: list[tuple[float, list[float | None]]] = []
    seconds = 0.0
    for lr in context.rates:

        def search(lr: float = lr) -> dict[str, Any]:
            accuracies = []
            for seed in seeds:
                network = train(context, lesson, lr, seed)
                accuracies.append(training.accuracy(network, validation, context.precision))
            return {"accuracies": accuracies}

        label = f"{stage.label}, trying learning rate {lr:g}"
        result = context.pieces.remember(f"search/{stage.key}/{lr!r}", label, search)
        seconds += result["seconds"]
        tried.append((lr, result["accuracies"]))
    lr, diverged = best_rate(tried)
    if diverged:
        log.say(
            f"warning: {stage.label}: networks diverged at every learning rate that was tried, so "
            f"{lr:g} is only the least bad"
        )
    return lr, seconds


def save_network(context: Context, stage: Stage, network: nn.Module) -> None:
    """Keep the network of a stage in the work folder, for an interrupted run to go on with."""
    path = _network_path(context, stage)
    if path is not None:
        files.make_folder(path.parent)
        files.write_tensors(path, network.state_dict(), {"identity": context.identity})


def load_network(context: Context, stage: Stage) -> nn.Module | None:
    """The network that an interrupted run left, None where there is none of this run."""
    path = _network_path(context, stage)
    if path is None or not path.is_file():
        return None
    state, metadata = files.read_tensors(path)
    if metadata.get("identity") != context.identity:
        return None
    data = context.data
    network = build_model(context.recipe.model, data.image_shape, data.num_classes, generator(0))
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise files.damaged(path, str(error).partition("\n")[0]) from None
    return network.to(context.device).eval()


def _network_path(context: Context, stage: Stage) -> Path | None:
    if context.work is None:
        return None
    return context.work / FOLDER / f"{stage.key.replace('/', '_')}.safetensors"
