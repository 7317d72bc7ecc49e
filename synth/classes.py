"""Batches class by class, for objectives that compare the classes of real and synthetic images one with one."""

from collections.abc import Iterator

import torch
from torch import Generator, Tensor

from ddengine.data import RealSet
from ddengine.errors import UserError
from ddengine.rng import on_device
from ddengine.synthetic import SyntheticSet

AT_ONCE = {"cuda": 4096, "cpu": 100}  # images in one pass; on a CPU larger ones only leave the cache (benchmarks/matching.py)


def check_real_batch(real: RealSet, batch: int) -> None:
    """Raise UserError when a class has fewer than `batch` training images."""
    for class_, members in enumerate(real.members):
        if batch > len(members):
            raise UserError(
                f"objective.real_batch {batch} is more than the {len(members)} training images of class {class_}; "
                "lower objective.real_batch, or raise data.limit."
            )


def class_members(syn: SyntheticSet, most: int | None, rng: Generator) -> Tensor:
    """Indices (K, n) of the decoded examples of every class, which all have equally many; with more than `most`, so many drawn at random."""
    num_classes = len(syn.class_names)
    members = torch.argsort(syn.classes.index_select(0, syn.source), stable=True).view(num_classes, -1)
    if most is None or members.shape[1] <= most:
        return members
    keys = torch.rand(members.shape, generator=on_device(rng, members.device), device=members.device, dtype=torch.float64)
    return members.gather(1, keys.topk(most).indices)


def pays(device: torch.device, images: int) -> int:
    """Classes of so many images each that are worth computing in one pass: many where launches cost, few where arithmetic does."""
    return max(1, AT_ONCE[device.type] // images)


def parts(classes: slice, at_once: int) -> Iterator[slice]:
    """The classes in parts of at most `at_once`."""
    for first in range(classes.start, classes.stop, at_once):
        yield slice(first, min(first + at_once, classes.stop))
