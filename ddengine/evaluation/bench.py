"""What is trained in an evaluation, and how: contenders, and the bench that trains them."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Literal

import torch
from torch import Generator, Tensor, nn

from ddengine.data import Data, RealSet
from ddengine.evaluation import brought
from ddengine.evaluation.brought import Factory
from ddengine.evaluation.rates import adapted
from ddengine.learning import training
from ddengine.learning.training import AtOnce, Classified, Labels, Means
from ddengine.models import build_model
from ddengine.models.dropout import is_dropout
from ddengine.recipe import EvalConfig
from ddengine.sets.targets import Classes, Targets
from ddengine.system import log
from ddengine.system.memo import Memo
from ddengine.system.rng import generator
from ddengine.system.runtime import Precision
from ddengine.system.shared import Shared
from ddengine.types import Json, TrainingSet

SEARCH_SEED = 1000  # the networks that choose a learning rate are not those that are reported

Split = Literal["validation", "test"]


@dataclass(frozen=True)
class Selection:
    """How images are chosen for a contender, which takes long and is remembered."""

    key: str
    label: str
    choose: Callable[[], list[int]]  # indices of training images
    looks: bool = False  # through a network trained on the full data


@dataclass(frozen=True)
class Contender:
    """A row to be: what networks are trained on, and with which labels."""

    name: str
    sets: Callable[[int], TrainingSet]  # draw -> set (random: each network has its own draw)
    several_draws: bool = False
    num: int | None = None  # examples, where images are not chosen yet
    steps: int | None = None  # updates; None: those of the protocol
    labels: Labels = "hard"
    # the distilled set in one of its forms, to which a learned rate belongs
    distilled: bool = False
    rate_of: "Contender | None" = None  # whose learning rate it takes; None: one is chosen for it
    looks: bool = False  # its labels come from a network trained on the full data
    selection: Selection | None = None
    # its real images and labels follow from the dataset and the seed, whatever the set is like
    baseline: bool = False
    # on which the network was trained that chose or labelled its images; None: no network did
    through: "Contender | None" = None
    by_time: bool = False  # its updates are cut to what a measured time allows
    turn: int = 1  # 0: trained before the others, 2: after them


@dataclass(frozen=True)
class Training:
    """Networks that are trained on a contender in one go, and judged."""

    who: Contender
    model: str
    lr: float
    seeds: tuple[int, ...]  # of each network
    draws: tuple[int, ...]  # which set of the contender each is trained on
    split: Split  # on which they are judged
    steps: int | None  # updates of each; None: as many as its epochs are


@dataclass(frozen=True)
class Economy:
    """What an evaluation does not spend on its protocol, and what it tells on the way."""

    # seconds that networks on the full data may take on each network; None: as long as they take
    full_seconds: float | None = None
    # as many updates as the validation split shows a set to need, and two learning rates
    quick: bool = False
    # seconds that other rows of a quick evaluation may take on each network; None: no bound
    quick_seconds: float | None = None
    # the folder in which evaluations share what came of baselines; None: they do not
    baselines: Path | None = None
    renew: bool = False  # train baselines again though they lie there
    looks: bool = False  # a person is told what comes next, and a first number soon


@dataclass(frozen=True)
class Bench:
    """What all trainings of an evaluation share."""

    data: Data
    config: EvalConfig
    seed: int
    device: torch.device
    precision: Precision
    memo: Memo
    means: Means
    economy: Economy = Economy()
    shared: Shared = Shared()  # what other evaluations have found out about baselines
    timed: bool = True  # whether trainings take time, and are not only noted
    clock: Callable[[], float] = time.perf_counter  # the seconds that these are said to take
    home: str = ""  # the network that the set was distilled with
    learned_lr: float | None = None  # with the distilled set, for the network `home` and SGD
    name: str = "distilled"  # of the set's row
    teachers: Sequence[nn.Module] = ()  # make dynamic labels, and those of random_soft
    label_bytes: float = 0.0  # of a soft label of the set, and so of random_soft
    as_labelled: Callable[[Tensor], Tensor] = lambda logits: logits  # how the set stores labels
    factories: Mapping[str, Factory] = field(default_factory=dict)  # networks of the user
    train: brought.Trainer | None = None  # the training function of the user
    targets: Targets = Classes()  # of the set
    outputs: int | None = None  # of a network that is trained towards them; None: the classes
    said: set[str] = field(default_factory=set)  # warnings
    sizes: dict[str, int] = field(default_factory=dict)  # examples of contenders, by name
    # what other evaluations were asked and told, by what it is remembered by
    asked_others: set[str] = field(default_factory=set)
    told_others: set[str] = field(default_factory=set)

    @property
    def threads(self) -> int:
        """On which each network is trained.

        As many as the machine on which the evaluation began had for each of the networks that it
        could train at a time; those of CUDA do not matter, and a training function of the user has
        all.
        """
        return self.memo("threads", self._threads_here)

    def _threads_here(self) -> int:
        allowed = torch.get_num_threads()
        if self.device.type != "cpu" or self.train is not None or self.config.labels == "dynamic":
            return allowed
        return max(1, allowed // self.at_a_time)

    @property
    def at_a_time(self) -> int:
        """Networks that can be trained at the same time, at most."""
        config = self.config
        return max(config.num_networks, len(config.lr_grid) * config.search_networks)

    @property
    def at_once(self) -> AtOnce:
        """Which networks are trained in one computation.

        The rule is that of the device on which the evaluation began, wherever it is resumed.
        """
        rule = self.memo("at_once", lambda: asdict(training.at_once_on(self.device)))
        return AtOnce(**rule)

    def warn(self, message: str) -> None:
        """Say something once, however often it turns up."""
        if message not in self.said:
            self.said.add(message)
            log.say(f"warning: {message}")

    def learned(self, model: str) -> float | None:
        """The learned rate where it belongs.

        That is with plain SGD on the network that it was learned for, where rates are not fixed.
        """
        if self.config.rate == "fixed":
            return None
        if model == self.home and adapted(self.config, model).optimiser == "sgd":
            return self.learned_lr
        return None

    def new_model(self, model: str, outputs: int | None = None) -> Callable[[Generator], nn.Module]:
        """What makes a network of that name, initialised from a generator.

        It has as many `outputs` as there are classes, where none are given.
        """
        shape, outputs = self.data.image_shape, outputs or self.data.num_classes
        if model in self.factories:
            return partial(brought.build, self.factories[model], shape, outputs)
        return partial(build_model, model, shape, outputs)

    def brought_by_user(self, model: str) -> list[str | None]:
        """What identifies in another process what the user brought that trains a network.

        None for what has no stable name.
        """
        names = []
        if model in self.factories:
            names.append(brought.stable_name(self.factories[model]))
        if self.train is not None:
            names.append(brought.stable_name(self.train))
        return names

    def size(self, who: Contender) -> int:
        """The number of examples of a contender."""
        if who.num is not None:
            return who.num
        if who.name not in self.sizes:
            self.sizes[who.name] = len(who.sets(0))
        return self.sizes[who.name]

    def updates(self, who: Contender) -> int:
        """Of a network on a contender, where nothing cuts them."""
        if who.steps is None:
            return training.num_updates(self.size(who), self.config)
        return who.steps

    def together(self, who: Contender, model: str, num: int) -> bool:
        """Whether so many networks on a contender are trained in one computation."""
        if self.train is not None or model in self.factories or self._random(model):
            return False
        _, height, width = self.data.image_shape
        config = adapted(self.config, model)
        return training.together(self.at_once, config, num, self.size(who), height * width)

    def _random(self, model: str) -> bool:
        """Whether a network draws random numbers while it is trained."""
        if model not in self._random_models:
            network = self.new_model(model)(generator(0))
            self._random_models[model] = any(map(is_dropout, network.modules()))
        return self._random_models[model]

    @cached_property
    def _random_models(self) -> dict[str, bool]:
        return {}

    def split(self, name: Split) -> RealSet:
        """The images that networks are judged on."""
        real = self.data.validation if name == "validation" else self.data.test
        assert real is not None
        return real

    def result(self, asked: Training) -> Json:
        """What comes of networks, for a memory.

        Of each its accuracy, None where it diverged, and the images of each class of the split that
        it is right about.
        """
        start = self.clock()
        results = self.accuracies(asked)
        seconds = self.clock() - start
        return {
            "accuracies": [result.accuracy for result in results],
            "right": [list(result.right) for result in results],
            "seconds": seconds,
        }

    def accuracies(self, asked: Training) -> list[Classified]:
        """What trained networks make of the images of a split."""
        on = self.split(asked.split)
        networks = self.networks(asked)
        judge = self.targets if _towards_targets(asked.who) else Classes()
        labelled, count = self.data.train, self.means.classified
        return [judge.evaluate(net, labelled, on, self.precision, count) for net in networks]

    def networks(self, asked: Training) -> list[nn.Module]:
        """Train networks; they are in evaluation mode."""
        who, model = asked.who, asked.model
        outputs, config = None, adapted(self.config, model)
        if _towards_targets(who):
            outputs, config = self.outputs, self.targets.trained_by(config)
        options: Json = {"foreign": True} if model in self.factories else {}
        train = self.means.train_networks
        if self.train is not None:
            train = brought.OwnTraining(self.train)
        return train(
            self.new_model(model, outputs),
            list(map(who.sets, asked.draws)),
            asked.seeds,
            config,
            asked.lr,
            self.device,
            steps=asked.steps,
            precision=self.precision,
            teachers=self.teachers,
            labels=who.labels,
            at_once=self.at_once,
            **options,
        )


def _towards_targets(who: Contender) -> bool:
    """Whether networks are trained towards the targets that the set stores."""
    return who.distilled and who.labels == "own"
