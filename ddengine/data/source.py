"""What a reader returns, and index arithmetic on labels."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from ddengine.data.decoder import Undecoded
from ddengine.system.errors import UserError


@dataclass(frozen=True)
class Part:
    """One split as stored: all labels, and images read when asked for."""

    labels: np.ndarray  # (N,) int64
    # indices (B,) -> (B, C, H, W) uint8; decodes only these
    fetch: Callable[[np.ndarray], np.ndarray]
    # what image i is called, below data.root; None: it has no name but its index
    name_of: Callable[[int], str] | None = None
    # what `fetch` decodes image by image; None: the images are stored as they are
    undecoded: Undecoded | None = None


@dataclass(frozen=True)
class Source:
    """A dataset as a reader found it."""

    train: Part
    test: Part | None  # None: there is no official test split
    class_names: tuple[str, ...]
    # published normalisation constants per channel; None: fitted
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    # what a person should know of how it was read; decoding adds to it
    notes: list[str] = field(default_factory=list)


def part_of_array(images: np.ndarray, labels: np.ndarray) -> Part:
    """A split that is already in memory; images (N, C, H, W) uint8."""
    return Part(labels.astype(np.int64), lambda index: images[index])


def stratified(
    labels: np.ndarray,
    num: int,
    seed: int,
) -> np.ndarray:
    """Sorted indices of `num` examples with every class in its proportion (largest remainders).

    At least one of each class is among them if num allows. They depend on the labels and the seed
    alone. Raises UserError for more than there are.
    """
    if num > len(labels):
        raise UserError(
            f"data.limit {num} is more than the {len(labels)} training images; lower it, or take "
            "all with --data.limit None."
        )
    classes, counts = np.unique(labels, return_counts=True)
    rng = np.random.default_rng(seed)
    chosen = []
    for class_, wanted in zip(classes, _apportioned(counts, num), strict=True):
        of_class = np.flatnonzero(labels == class_)
        members = rng.permutation(of_class)
        chosen.append(members[:wanted])
    return np.sort(np.concatenate(chosen))


def _apportioned(counts: np.ndarray, num: int) -> np.ndarray:
    """How many examples of each class (K,) are taken, `num` in all.

    They are in proportion to its `counts` by largest remainders, and at least one if num allows.
    """
    exact = counts * num / counts.sum()
    take = np.floor(exact).astype(int)
    if num >= len(counts):
        take = np.maximum(take, 1)
    order = np.argsort(exact - take, kind="stable")[::-1]
    step = 0
    # hand out the remainder, or take back what the minimum of one gave too much
    while take.sum() != num:
        class_ = order[step % len(order)]
        left = num - take.sum()
        if left > 0 and take[class_] < counts[class_]:
            take[class_] += 1
        elif left < 0:
            largest = np.argmax(take)
            take[largest] -= 1
        step += 1
    return take


def hold_out(
    labels: np.ndarray,
    fraction: float,
    seed: int,
    *,
    at_least: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """(kept, held out) indices, both sorted.

    Of each class max(at_least, round(fraction * count)) are held out, but never the last one.
    """
    rng = np.random.default_rng(seed)
    by_class = [np.empty(0, np.int64)]
    for class_ in np.unique(labels):
        of_class = np.flatnonzero(labels == class_)
        members = rng.permutation(of_class)
        wanted = max(at_least, round(fraction * len(members)))
        num = min(wanted, len(members) - 1)
        by_class.append(members[:num])
    held_out = np.sort(np.concatenate(by_class))
    everything = np.arange(len(labels))
    kept = np.setdiff1d(everything, held_out)
    return kept, held_out
