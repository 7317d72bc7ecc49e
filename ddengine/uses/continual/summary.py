"""What continual.json says of a memory: accuracies after each stage, and what was forgotten."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from ddengine.evaluation.intervals import counted, interval
from ddengine.uses.continual.config import CLASS_BYTES, JOINT, images_per_class
from ddengine.uses.continual.context import Context
from ddengine.uses.continual.stages import Repeat, Right

# [t][s], s <= t: accuracy after stage t on the classes of stage s; None where its network diverged
Matrix = Sequence[Sequence[float | None]]


def forgetting(matrix: Matrix) -> float | None:
    """Mean over earlier stages of how far the accuracy on their classes fell from its best.

    It is negative where it rose. The best is that of all stages before the last (Chaudhry et al.,
    ECCV 2018). None where the network of a stage diverged, and so has no accuracies.
    """
    last = len(matrix) - 1
    accuracies = np.full((len(matrix), len(matrix)), -np.inf)
    for t, line in enumerate(matrix):
        for s, accuracy in enumerate(line):
            if accuracy is None:
                return None
            accuracies[t, s] = accuracy
    best = accuracies[:last, :last].max(0)
    return float(np.mean(best - accuracies[last, :last]))


def statistics(
    values: Sequence[float | None], low: float = 0.0, high: float = 1.0
) -> dict[str, Any]:
    """Statistics of values within `low` and `high`, one a repeat.

    Those of networks that diverged are None, and do not count.
    """
    finite = counted(values)
    mean, std, ci95 = interval(finite, low, high)
    return {
        "mean": mean,
        "std": std,
        "ci95": ci95 and list(ci95),
        "diverged": len(values) - len(finite),
        "values": [None if value is None else float(value) for value in values],
    }


def summary(
    context: Context, memory: str, repeats: Sequence[Repeat], orders: list[list[list[int]]]
) -> dict[str, Any]:
    """What continual.json says of a memory, of whose repeats the classes came in `orders`."""
    data = context.data
    assert data.test is not None
    tested = dict(zip(data.class_names, map(len, data.test.members), strict=True))
    accuracies = []  # after each stage, on all classes seen so far
    for t in range(context.config.stages):
        after = [repeat.right[t] for repeat in repeats]
        accuracies.append(statistics([_accuracy(right, right or (), tested) for right in after]))
    by_stage = []
    for repeat, order in zip(repeats, orders, strict=True):
        by_stage.append(_matrix(repeat, order, data.class_names, tested))
    if memory == JOINT:
        num, size = None, data.bytes + CLASS_BYTES * len(data.train)
    else:
        num = images_per_class(memory, data, context.recipe, context.config)
        size = repeats[0].size
    return {
        "images_per_class": num,
        "bytes": size,
        "accuracy": accuracies,
        "final": accuracies[-1],
        "final_by_class": _final_by_class(repeats, tested),
        "by_stage": by_stage,  # of each repeat: after stage t on the classes of stage s
        "forgetting": statistics(list(map(forgetting, by_stage)), -1.0),
        "lr": [repeat.rates for repeat in repeats],
        "seconds": round(sum(repeat.seconds for repeat in repeats), 2),
    }


def _final_by_class(repeats: Sequence[Repeat], tested: Mapping[str, int]) -> dict[str, Any]:
    """The statistics of the accuracy on each class after the last stage."""
    last = [repeat.right[-1] for repeat in repeats]
    by_class = {}
    for name in tested:
        by_class[name] = statistics([_accuracy(right, (name,), tested) for right in last])
    return by_class


def _matrix(
    repeat: Repeat, order: list[list[int]], names: Sequence[str], tested: Mapping[str, int]
) -> list[list[float | None]]:
    """The accuracies of a repeat after each stage on the classes of each stage so far."""
    parts = []
    for classes in order:
        parts.append([names[c] for c in classes])
    lines = []
    for t, right in enumerate(repeat.right):
        lines.append([_accuracy(right, part, tested) for part in parts[: t + 1]])
    return lines


def _accuracy(
    right: Right | None, names: Collection[str], tested: Mapping[str, int]
) -> float | None:
    """The share of the test images of some classes that is correct; None of a lost network.

    `tested` is the number of test images of each class.
    """
    if right is None:
        return None
    return sum(right[name] for name in names) / sum(tested[name] for name in names)
