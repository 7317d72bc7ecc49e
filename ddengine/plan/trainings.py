"""Trainings of networks: noted instead of done, then timed by kind."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Generator, nn

from ddengine.data import RealSet
from ddengine.learning import training
from ddengine.learning.training import Classified, Means
from ddengine.plan.apart import timed
from ddengine.recipe import EvalConfig
from ddengine.system.rng import generator
from ddengine.system.runtime import Precision
from ddengine.types import TrainingSet

SECONDS = 1.0  # of calibration of each kind of training
TESTED = 2000  # images on which testing is timed


@dataclass(frozen=True)
class Training:
    """What `training.train_networks` was asked for."""

    new_model: Callable[[Generator], nn.Module]
    sets: Sequence[TrainingSet]
    seeds: Sequence[int]
    config: EvalConfig
    lr: float
    device: torch.device
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def updates(self) -> int:
        """Of each network."""
        steps = self.options.get("steps")
        if steps is None:
            return training.num_updates(len(self.sets[0]), self.config)
        return steps

    @property
    def at_once(self) -> int:
        """Networks that may be trained in one computation.

        Where each is trained alone, one is timed for all.
        """
        num = len(self.seeds)
        examples = self.sets[0]
        rule = self.options.get("at_once") or training.at_once_on(self.device)
        images = min(self.config.batch, len(examples))
        return num if rule.together(num, images, training.pixels(examples)) else 1

    @property
    def kind(self) -> tuple[Any, ...]:
        """Equal for trainings whose updates cost the same."""
        examples = self.sets[0]
        options = self.options
        return (
            network_kind(self.new_model),
            type(examples),
            len(examples),
            self.config,
            options.get("labels"),
            options.get("precision"),
            len(options.get("teachers", ())),
            self.at_once,
            options.get("observe") is not None,
        )

    def run(self, steps: int) -> list[nn.Module]:
        """Do it, with so many updates, for as many networks as are trained together."""
        num = self.at_once
        options: dict[str, Any] = self.options | {"steps": steps}
        options.pop("observe", None)
        return training.train_networks(
            self.new_model,
            self.sets[:num],
            self.seeds[:num],
            self.config,
            self.lr,
            self.device,
            **options,
        )


def network_kind(new_model: Any) -> Any:
    """Equal for functions that make networks of one kind."""
    if isinstance(new_model, partial):
        return (new_model.func, new_model.args)
    return new_model


@dataclass
class Calls:
    """The trainings and tests that a piece of the program asked for, none of which was made.

    Its `means` stand in for those of `learning.training`: networks stay as they are made, and a
    half of every class is right.
    """

    trainings: list[Training] = field(default_factory=list)
    tests: list[tuple[nn.Module, RealSet, Precision]] = field(default_factory=list)
    networks: dict[Any, nn.Module] = field(default_factory=dict)  # one of each kind, for all

    @property
    def means(self) -> Means:
        """What an evaluation trains and judges by, so that its calls are noted."""
        return Means(self.train_networks, self.classified)

    def train_networks(
        self,
        new_model: Callable[[Generator], nn.Module],
        sets: Sequence[TrainingSet],
        seeds: Sequence[int],
        config: EvalConfig,
        lr: float,
        device: torch.device,
        **options: Any,
    ) -> list[nn.Module]:
        """Note a training."""
        asked = Training(new_model, list(sets), list(seeds), config, lr, device, options)
        self.trainings.append(asked)
        kind = network_kind(new_model)
        # one of a kind stands for all, so that none is built that the timing builds again
        if kind not in self.networks:
            network = new_model(generator(seeds[0], "network"))
            self.networks[kind] = network.to(device).eval()
        return [self.networks[kind]] * len(seeds)

    def classified(
        self, network: nn.Module, real: RealSet, precision: Precision = "fp32"
    ) -> Classified:
        """Note a test."""
        self.tests.append((network, real, precision))
        images = [len(members) for members in real.members]
        half = [num / 2 for num in images]
        return Classified(tuple(half), tuple(images))

    def num_networks(self) -> int:
        """Of all trainings."""
        num = 0
        for asked in self.trainings:
            num += len(asked.seeds)
        return num

    def num_updates(self) -> int:
        """Of all networks of all trainings."""
        num = 0
        for asked in self.trainings:
            num += len(asked.seeds) * asked.updates
        return num


def seconds_of(calls: Calls) -> float:
    """Seconds of everything noted.

    Each kind of training is timed for some updates, each kind of network for some images.
    """
    kinds: dict[Any, list[Training]] = {}
    for asked in calls.trainings:
        kinds.setdefault(asked.kind, []).append(asked)
    seconds = 0.0
    for alike in kinds.values():
        seconds += _training_seconds(alike)
    return seconds + testing_seconds(calls)


def _training_seconds(alike: Sequence[Training]) -> float:
    """Seconds of trainings whose updates cost the same."""
    asked = alike[0]
    num = asked.at_once
    most = max(training.updates for training in alike)
    if most == 0:
        return 0.0

    def run(steps: int) -> float:
        seconds, _ = timed(asked.device, lambda: asked.run(steps))
        return seconds

    one, _ = timed(asked.device, lambda: asked.new_model(generator(0, "network")))
    building = num * one
    first = min(2, most)
    rough = run(first) / first  # with all that happens only once
    update = rough
    if rough * most > SECONDS / 20:
        within = min(most, int(SECONDS / rough))
        steps = max(1, within)
        update = max(run(steps) - building, 0.0) / steps
    total = 0.0
    for each in alike:
        computations = len(each.seeds) / num
        total += computations * (building + each.updates * update)
    return total


def testing_seconds(calls: Calls) -> float:
    """Seconds of the tests."""
    each: dict[Any, float] = {}  # seconds an image, by network
    total = 0.0
    for network, real, precision in calls.tests:
        key = (id(network), precision)
        if key not in each:
            each[key] = _seconds_an_image(network, real, precision)
        total += each[key] * len(real)
    return total


def _seconds_an_image(network: nn.Module, real: RealSet, precision: Precision) -> float:
    some = first_images(real, TESTED)
    test = partial(training.accuracy, network, some, precision)
    test()  # the first time is slower
    seconds, _ = timed(real.device, test)
    return seconds / len(some)


def first_images(real: RealSet, num: int) -> RealSet:
    """The first `num` images of a set, or all where there are fewer."""
    pixels = real.pixels[:num]
    labels = real.labels[:num]
    return RealSet(pixels, labels, real.num_classes, real.preprocess)
