"""What is trained in an evaluation, and how: contenders, and the bench that trains them."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor, nn

from ddengine.data import Data, RealSet
from ddengine.evaluation import brought
from ddengine.evaluation.brought import Factory
from ddengine.evaluation.rates import Tried, adapted, best_rate, candidates
from ddengine.learning import training
from ddengine.learning.training import AtOnce, Classified, Labels, Means
from ddengine.models import build_model
from ddengine.recipe import EvalConfig
from ddengine.sets.targets import Classes, Targets
from ddengine.system import log
from ddengine.system.memo import Memo
from ddengine.system.runtime import Precision
from ddengine.types import Json, TrainingSet

SEARCH_SEED = 1000  # the networks that choose a learning rate are not those that are reported


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
    steps: int | None = None  # updates; None: those of the protocol
    labels: Labels = "hard"
    # the distilled set in one of its forms, to which a learned rate belongs
    distilled: bool = False
    rate_of: "Contender | None" = None  # whose learning rate it takes; None: one is chosen for it
    looks: bool = False  # its labels come from a network trained on the full data
    selection: Selection | None = None


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

        That is with plain SGD on the network that it was learned for.
        """
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

    def remember(self, key: str, model: str, compute: Callable[[], Any]) -> Any:
        """The result of a training of `model`, computed when new.

        What the user brought is part of its key; what of this has no stable name is not kept for
        another process.
        """
        names = []
        if model in self.factories:
            names.append(brought.stable_name(self.factories[model]))
        if self.train is not None:
            names.append(brought.stable_name(self.train))
        full_key = "/".join([key, *map(str, names)])
        return self.memo(full_key, compute, keep=None not in names)

    def accuracies(
        self, who: Contender, model: str, lr: float, seeds: Sequence[int], on: RealSet
    ) -> list[Classified]:
        """What one network per seed makes of the images of `on`."""
        outputs, config = None, adapted(self.config, model)
        towards_targets = who.distilled and who.labels == "own"
        if towards_targets:
            outputs, config = self.outputs, self.targets.trained_by(config)
        options: Json = {"foreign": True} if model in self.factories else {}
        train = self.means.train_networks
        if self.train is not None:
            train = brought.OwnTraining(self.train)
        networks = train(
            self.new_model(model, outputs),
            list(map(who.sets, range(len(seeds)))),
            seeds,
            config,
            lr,
            self.device,
            steps=who.steps,
            precision=self.precision,
            teachers=self.teachers,
            labels=who.labels,
            at_once=self.at_once,
            **options,
        )
        judge = self.targets if towards_targets else Classes()
        labelled, count = self.data.train, self.means.classified
        return [judge.evaluate(net, labelled, on, self.precision, count) for net in networks]


def _timed(compute: Callable[[], list[Classified]]) -> Json:
    """What is remembered of networks.

    Of each its accuracy, None where it diverged, and the images of each class that it is right
    about.
    """
    start = time.perf_counter()
    results = compute()
    seconds = time.perf_counter() - start
    return {
        "accuracies": [result.accuracy for result in results],
        "right": [list(result.right) for result in results],
        "seconds": seconds,
    }


def tried_rates(bench: Bench, who: Contender, model: str) -> list[float]:
    """The learning rates that are tried for a contender; none where its rate is not chosen."""
    if who.rate_of is not None or bench.data.validation is None:
        return []
    if bench.config.rate == "learned":
        return []
    return candidates(adapted(bench.config, model), bench.learned(model))


def search(bench: Bench, who: Contender, model: str, lr: float) -> Json:
    """What networks reach at a rate on the validation split, remembered."""
    assert bench.data.validation is not None
    first = bench.seed + SEARCH_SEED
    seeds = list(range(first, first + bench.config.search_networks))
    compute = partial(bench.accuracies, who, model, lr, seeds, bench.data.validation)
    return bench.remember(f"search/{who.name}/{model}/{lr!r}", model, partial(_timed, compute))


def final(bench: Bench, who: Contender, model: str) -> Json:
    """What the reported networks reach on the test split, remembered."""
    assert bench.data.test is not None
    lr, _ = choose_lr(bench, who, model)
    seeds = reported_seeds(bench)
    compute = partial(bench.accuracies, who, model, lr, seeds, bench.data.test)
    return bench.remember(f"final/{who.name}/{model}/{lr!r}", model, partial(_timed, compute))


def reported_seeds(bench: Bench) -> list[int]:
    """Of the networks of a row."""
    return list(range(bench.seed, bench.seed + bench.config.num_networks))


def choose_lr(bench: Bench, who: Contender, model: str) -> tuple[float, float]:
    """(learning rate, seconds that choosing it took).

    It is the best on the validation split of the grid and, on the recipe's network, the rate
    learned with the set. Without a validation split, and with rate "learned": the learned rate for
    the distilled set, where it belongs, the usual one otherwise.
    """
    if who.rate_of is not None:
        lr, _ = choose_lr(bench, who.rate_of, model)
        return lr, 0.0
    rates = tried_rates(bench, who, model)
    if not rates:
        learned = bench.learned(model)
        if who.distilled and learned:
            return learned, 0.0
        return adapted(bench.config, model).lr, 0.0
    tried: list[Tried] = []
    seconds = 0.0
    for lr in rates:
        run = search(bench, who, model, lr)
        seconds += run["seconds"]
        tried.append((lr, run["accuracies"]))
    lr, diverged = best_rate(tried)
    if diverged:
        bench.warn(
            f"{who.name} on {model}: networks diverged at every learning rate that was tried, so "
            f"{lr:g} is only the least bad"
        )
    return lr, seconds
