"""Learning rates of networks that are trained on a set: which are tried, and which is chosen."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ddengine.evaluation.intervals import counted
from ddengine.models import usual_optimiser
from ddengine.recipe import EvalConfig

# of networks that SGD trains badly
ADAMW = {"optimiser": "adamw", "weight_decay": 0.05, "lr": 0.001, "lr_grid": (0.0003, 0.001, 0.003)}

# a rate, and the accuracies of the networks that were trained at it, None where one diverged
Tried = tuple[float, Sequence[float | None]]


def adapted(config: EvalConfig, model: str) -> EvalConfig:
    """The protocol for a network.

    It has the optimiser that the network needs in place of SGD, where `config.adapt` allows that
    and SGD trains it badly. Networks that step as students of the set do so whatever they are.
    """
    if config.students is not None:
        return config
    if config.adapt and config.optimiser == "sgd" and usual_optimiser(model) == "adamw":
        return replace(config, **ADAMW)  # type: ignore[arg-type]
    return config


def candidates(config: EvalConfig, learned_lr: float | None) -> list[float]:
    """The learning rates tried for every set on a network, ascending.

    The learned one is open to all sets.
    """
    rates = set(config.lr_grid)
    if learned_lr:
        rates.add(learned_lr)
    return sorted(rates)


def two_of(config: EvalConfig, learned_lr: float | None) -> list[float]:
    """The learning rates that a quick evaluation tries, ascending.

    They are the usual one and the learned one; without that, the next larger of the grid, or the
    largest.
    """
    larger = [rate for rate in config.lr_grid if rate > config.lr]
    other = learned_lr or min(larger, default=max(config.lr_grid))
    return sorted({config.lr, other})


def best_rate(tried: Sequence[Tried]) -> tuple[float, bool]:
    """(the learning rate that its networks recommend, whether networks diverged even there).

    `tried`: rates, ascending, and the accuracies of their networks, None where one diverged. A rate
    at which a network diverged is chosen only where that is so at all rates, then one where fewest
    did; otherwise the highest mean counts, of equal ones the smallest rate.
    """
    rate, accuracies = max(tried, key=_merit)  # the first of equal ones
    return rate, None in accuracies


def _merit(tried: Tried) -> tuple[int, float]:
    """(networks that diverged, as a negative number, mean accuracy of the others): higher, better.

    The mean of none is 0.
    """
    _, accuracies = tried
    finite = counted(accuracies)
    mean = 0.0
    if finite:
        mean = float(np.mean(finite))
    return len(finite) - len(accuracies), mean
