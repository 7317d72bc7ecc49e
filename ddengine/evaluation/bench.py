"""What is trained in an evaluation, and how: contenders, and the bench that trains them."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ddengine.data import Data, RealSet
from ddengine.evaluation.rates import adapted, best_rate, candidates
from ddengine.learning import training
from ddengine.models import build_model
from ddengine.recipe import EvalConfig
from ddengine.system import log
from ddengine.system.memo import Memo
from ddengine.system.runtime import Precision
from ddengine.types import TrainingSet

Labels = Literal["own", "hard", "dynamic"]


SEARCH_SEED = 1000  # the networks that choose a learning rate are not those that are reported


@dataclass(frozen=True)
class Contender:
    """A row to be: a set for each network (random: each network its own draw), and which labels it
    is trained with.
    """

    name: str
    sets: Callable[[int], TrainingSet]  # draw -> set
    several_draws: bool = False
    steps: int | None = None  # updates; None: those of the protocol
    labels: Labels = "hard"
    own: bool = False  # the distilled set in one of its forms, to which a learned rate belongs
    rate_of: "Contender | None" = None  # whose learning rate it takes; None: one is chosen for it


@dataclass(frozen=True)
class Bench:
    """What all trainings of an evaluation share."""

    data: Data
    config: EvalConfig
    seed: int
    device: torch.device
    precision: Precision
    memo: Memo
    advance: Callable[[str], None]
    home: str = ""  # the network that the set was distilled with
    learned_lr: float | None = None  # with the distilled set, for the network `home` and SGD
    name: str = "distilled"  # of the set's row
    teachers: Sequence[nn.Module] = ()  # make dynamic labels, and those of random_soft
    label_bytes: float = 0.0  # of a soft label of the set, and so of random_soft
    as_labelled: Callable[[Tensor], Tensor] = lambda logits: logits  # how the set stores labels
    seen: set[str] = field(default_factory=set)  # keys of results
    said: set[str] = field(default_factory=set)  # warnings

    def warn(self, message: str) -> None:
        """Say something once, however often it is found."""
        if message not in self.said:
            self.said.add(message)
            log.say(f"warning: {message}")

    def remember(self, key: str, label: str, compute: Callable[[], Any]) -> Any:
        """The result stored under `key`, computed when new; the progress advances once a key."""
        if key not in self.seen:
            self.seen.add(key)
            self.advance(label)
        return self.memo(key, compute)

    def learned(self, model: str) -> float | None:
        """The learned rate where it belongs: with plain SGD on the network that it was learned for."""
        return (
            self.learned_lr
            if model == self.home and adapted(self.config, model).optimiser == "sgd"
            else None
        )

    def accuracies(
        self, who: Contender, model: str, lr: float, seeds: Sequence[int], on: RealSet
    ) -> list[training.Classified]:
        """What one network per seed makes of the images of `on`."""
        sets = [who.sets(i) for i in range(len(seeds))]
        new_model = partial(build_model, model, self.data.image_shape, self.data.num_classes)
        networks = training.train_networks(
            new_model, sets, seeds, adapted(self.config, model), lr, self.device,
            steps=who.steps, precision=self.precision, teachers=self.teachers, labels=who.labels,
        )  # fmt: skip
        return [training.classified(network, on, self.precision) for network in networks]


def timed(compute: Callable[[], list[training.Classified]]) -> dict[str, Any]:
    """As it is remembered: of each network its accuracy, None where it diverged, and the images of
    each class that it is right about.
    """
    start = time.perf_counter()
    found = compute()
    return {
        "accuracies": [f.accuracy for f in found],
        "right": [list(f.right) for f in found],
        "seconds": time.perf_counter() - start,
    }


def choose_lr(bench: Bench, who: Contender, model: str) -> tuple[float, float]:
    """(learning rate, seconds): the best on the validation split of the grid and, on the recipe's
    network, the rate learned with the set.

    Without a validation split, and with rate "learned": the learned rate for the distilled set,
    where it belongs, the usual one otherwise.
    """
    if who.rate_of is not None:
        return choose_lr(bench, who.rate_of, model)[0], 0.0
    validation, config, learned = (
        bench.data.validation,
        adapted(bench.config, model),
        bench.learned(model),
    )
    if validation is None or config.rate == "learned":
        return (learned if who.own and learned else config.lr), 0.0
    tried: list[tuple[float, list[float | None]]] = []
    seconds = 0.0
    seeds = [bench.seed + SEARCH_SEED + i for i in range(bench.config.search_networks)]
    for lr in candidates(config, learned):
        run = bench.remember(
            f"search/{who.name}/{model}/{lr!r}",
            f"{who.name} on {model}, trying learning rate {lr:g}",
            lambda lr=lr: timed(lambda: bench.accuracies(who, model, lr, seeds, validation)),
        )
        seconds += run["seconds"]
        tried.append((lr, run["accuracies"]))
    lr, diverged = best_rate(tried)
    if diverged:
        bench.warn(
            f"{who.name} on {model}: networks diverged at every learning rate that was tried, so "
            f"{lr:g} is only the least bad"
        )
    return lr, seconds
