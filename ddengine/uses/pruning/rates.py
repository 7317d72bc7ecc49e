"""The learning rate of a row: one for all its repeats, chosen by networks that are not reported."""

from collections.abc import Callable

from torch import nn

from ddengine.evaluation.rates import best_rate
from ddengine.learning import training
from ddengine.system import log
from ddengine.types import Json
from ddengine.uses.pruning.context import Context

Train = Callable[[float, int], nn.Module]  # (learning rate, seed) -> a trained network


def chosen_rate(context: Context, key: str, label: str, train: Train) -> float:
    """The best of the learning rates on the validation images; the only one where none is tried.

    Each is tried by as many networks as the protocol says.
    """
    if len(context.rates) == 1:
        return context.rates[0]
    validation = context.data.validation
    assert validation is not None
    seeds = [context.seed_of("search", i) for i in range(context.protocol.search_networks)]
    tried: list[tuple[float, list[float | None]]] = []
    for lr in context.rates:

        def search(lr: float = lr) -> Json:
            accuracies = []
            for seed in seeds:
                network = train(lr, seed)
                accuracies.append(training.accuracy(network, validation, context.precision))
            return {"accuracies": accuracies}

        said = f"{label}, trying learning rate {lr:g}"
        result = context.pieces.remember(f"search/{key}/{lr!r}", said, search)
        tried.append((lr, result["accuracies"]))
    lr, diverged = best_rate(tried)
    if diverged:
        log.say(
            f"warning: {label}: networks diverged at every learning rate that was tried, so {lr:g} "
            "is only the least bad"
        )
    return lr
