"""Batches class by class.

For objectives that compare the classes of real and synthetic images one with one.
"""

from collections.abc import Iterator

import torch
from torch import Generator, Tensor

from ddengine.data import RealSet
from ddengine.data.splits import listed
from ddengine.objective import Env
from ddengine.recipe import require_at_least
from ddengine.sets.synthetic import SyntheticSet
from ddengine.system import dist, log
from ddengine.system.rng import on_device

# Images of 32 x 32 in one pass. On a GPU about 3 MB each for a graph of second order (ConvNet,
# width 128); on a CPU larger passes only leave the cache, and fewer classes than FEWEST are slower
# together than one by one (benchmarks/matching.py).
AT_ONCE = {"cuda": 2048, "cpu": 100}
FEWEST = {"cuda": 2, "cpu": 4}
GRADIENT_BYTES = 2**28  # of the gradients, one for each class, that are alive together


def check_batches(real_batch: int, syn_batch: int | None, classes_at_once: int | None) -> None:
    """Raise UserError for a size of an objective's configuration that is not positive."""
    require_at_least("objective.real_batch", real_batch)
    require_at_least("objective.syn_batch", syn_batch)
    require_at_least("objective.classes_at_once", classes_at_once)


def say_small_classes(real: RealSet, batch: int) -> None:
    """Say which classes have fewer training images than a real batch.

    Their batches therefore hold some images more than once.
    """
    small = []
    for class_, members in enumerate(real.members):
        if len(members) < batch:
            small.append(f"{real.called(class_)} ({len(members)})")
    if small:
        log.say(
            f"objective.real_batch {batch} is more than the training images of class "
            f"{listed(small)}, so the batch of such a class is all of its "
            "images, some of them again"
        )


def class_members(syn: SyntheticSet, most: int | None, rng: Generator) -> Tensor:
    """Indices (K, n) of the decoded examples of every class, which all have equally many.

    With more than `most`, so many drawn at random.
    """
    classes = syn.classes.index_select(0, syn.source)
    by_class = torch.argsort(classes, stable=True)
    members = by_class.view(len(syn.class_names), -1)
    if most is None or members.shape[1] <= most:
        return members
    device = members.device
    keys = torch.rand(
        members.shape, generator=on_device(rng, device), device=device, dtype=torch.float64
    )
    drawn = keys.topk(most).indices
    return members.gather(1, drawn)


def images_per_class(syn: SyntheticSet, most: int | None) -> int:
    """Decoded examples of a class that a step sees, at most `most`."""
    each = len(syn) // len(syn.class_names)
    if most is None:
        return each
    return min(each, most)


def pays(env: Env, images: int, device: str | None = None) -> int:
    """Classes of so many images each that are worth computing in one pass.

    Many where launches cost, few where arithmetic or memory does. `device` is the kind of device
    where it is not that of `env`.
    """
    kind = device or env.device.type
    _, height, width = env.real.image_shape
    pixels = images * height * width
    by_images = AT_ONCE[kind] * 32 * 32 // pixels
    gradient_bytes = 4 * env.model.num_params
    by_bytes = GRADIENT_BYTES // gradient_bytes
    classes = min(by_images, by_bytes)
    if classes < FEWEST[kind]:
        return 1
    return classes


def share_of(classes: slice) -> slice:
    """The part of some classes, or images, that is this rank's where ranks share them: in a row."""
    each = -(-(classes.stop - classes.start) // dist.num_ranks())
    first = min(classes.start + dist.rank() * each, classes.stop)
    return slice(first, min(first + each, classes.stop))


def parts(classes: slice, at_once: int) -> Iterator[slice]:
    """The classes in parts of at most `at_once`."""
    for first in range(classes.start, classes.stop, at_once):
        yield slice(first, min(first + at_once, classes.stop))
