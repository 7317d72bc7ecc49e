"""Batches class by class.

For objectives that compare the classes of real and synthetic images one with one.
"""

from collections.abc import Iterator

import torch
from torch import Generator, Tensor

from ddengine.data import RealSet
from ddengine.data.splits import listed
from ddengine.objective import Env
from ddengine.recipe import require
from ddengine.sets.synthetic import SyntheticSet
from ddengine.system import log
from ddengine.system.rng import on_device

# Images of 32 x 32 in one pass. On a GPU about 3 MB each for a graph of second order (ConvNet,
# width 128); on a CPU larger passes only leave the cache, and fewer classes than FEWEST are slower
# together than one by one (benchmarks/matching.py).
AT_ONCE = {"cuda": 2048, "cpu": 100}
FEWEST = {"cuda": 2, "cpu": 4}
GRADIENT_BYTES = 2**28  # of the gradients, one for each class, that are alive together


def check_batches(real_batch: int, syn_batch: int | None, classes_at_once: int | None) -> None:
    """Raise UserError for a size of an objective's configuration that is not positive."""
    for name, value in (
        ("real_batch", real_batch),
        ("syn_batch", syn_batch),
        ("classes_at_once", classes_at_once),
    ):
        require(value is None or value >= 1, f"objective.{name} must be at least 1, got {value}.")


def say_small_classes(real: RealSet, batch: int) -> None:
    """Say which classes have fewer training images than a real batch.

    Their batches therefore hold some images more than once.
    """
    small = [
        f"{real.called(class_)} ({len(members)})"
        for class_, members in enumerate(real.members)
        if len(members) < batch
    ]
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
    num_classes = len(syn.class_names)
    members = torch.argsort(syn.classes.index_select(0, syn.source), stable=True).view(
        num_classes, -1
    )
    if most is None or members.shape[1] <= most:
        return members
    keys = torch.rand(
        members.shape,
        generator=on_device(rng, members.device),
        device=members.device,
        dtype=torch.float64,
    )
    return members.gather(1, keys.topk(most).indices)


def images_per_class(syn: SyntheticSet, most: int | None) -> int:
    """Decoded examples of a class that a step sees, at most `most`."""
    each = len(syn) // len(syn.class_names)
    return each if most is None else min(each, most)


def pays(env: Env, images: int, device: str | None = None) -> int:
    """Classes of so many images each that are worth computing in one pass.

    Many where launches cost, few where arithmetic or memory does. `device` is the kind of device
    where it is not that of `env`.
    """
    kind, (_, height, width) = device or env.device.type, env.real.image_shape
    by_images = AT_ONCE[kind] * 32 * 32 // (images * height * width)
    classes = min(by_images, GRADIENT_BYTES // (4 * env.model.num_params))
    return classes if classes >= FEWEST[kind] else 1


def parts(classes: slice, at_once: int) -> Iterator[slice]:
    """The classes in parts of at most `at_once`."""
    for first in range(classes.start, classes.stop, at_once):
        yield slice(first, min(first + at_once, classes.stop))
