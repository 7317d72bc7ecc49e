"""Batches of some examples of each class, of any set."""

import torch
from torch import Generator, Tensor

from ddengine.recipe import ClassBatches
from ddengine.types import TrainingSet

AT_ONCE = 1000  # examples whose classes are asked for at a time


def classes_of(of: TrainingSet) -> Tensor:
    """The classes (N,) of all examples of a set that knows them, on the processor."""
    parts = []
    for index in torch.arange(len(of)).split(AT_ONCE):
        batch = of.batch(index)
        classes = batch.targets if batch.classes is None else batch.classes
        assert not classes.is_floating_point(), "the set does not say the classes of its examples"
        parts.append(classes.cpu())
    return torch.cat(parts)


def class_batch(classes: Tensor, config: ClassBatches, step: int, rng: Generator) -> Tensor:
    """The indices (B,) of the examples of a step, class by class.

    Of a class that has fewer examples than are asked for it is all of them. classes (N,).
    """
    num = len(classes)
    keys = torch.zeros(num, dtype=torch.float64)
    if config.order == "random":
        keys = torch.rand(num, generator=rng, dtype=torch.float64)
    order = (classes + keys).argsort(stable=True)
    counts = classes.bincount()
    of_class = classes[order]
    each = counts[of_class]
    first = (counts.cumsum(0) - counts)[of_class]
    place = torch.arange(num) - first
    per_class = int(counts.max()) if config.per_class is None else config.per_class
    if config.order == "turns":
        place = (place - step * per_class) % each
    chosen = order[place < per_class]
    if config.classes is None or config.classes >= len(counts):
        return chosen
    drawn = torch.randperm(len(counts), generator=rng)[: config.classes]
    return chosen[torch.isin(classes[chosen], drawn)]
