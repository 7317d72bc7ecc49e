"""What a reader returns, and index arithmetic on labels."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from ddengine.system.errors import UserError


@dataclass(frozen=True)
class Part:
    """One split as stored: all labels, and images read when asked for."""

    labels: np.ndarray  # (N,) int64
    # indices (B,) -> (B, C, H, W) uint8; decodes only these
    fetch: Callable[[np.ndarray], np.ndarray]
    # what image i is called, below data.root; None: it has no name but its index
    name_of: Callable[[int], str] | None = None


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


def stratified(labels: np.ndarray, num: int, seed: int) -> np.ndarray:
    """Sorted indices of `num` examples with every class in its proportion (largest remainders), at
    least one of each class if num allows.

    Depends on the labels and the seed alone.
    """
    classes, counts = np.unique(labels, return_counts=True)
    if num > len(labels):
        raise UserError(
            f"data.limit {num} is more than the {len(labels)} training images; lower it, or take "
            "all with --data.limit None."
        )
    share = counts * num / len(labels)
    take = np.floor(share).astype(int)
    if num >= len(classes):
        take = np.maximum(take, 1)
    order = np.argsort(share - take, kind="stable")[::-1]
    step = 0
    # hand out the remainder, or take back what the minimum of one gave too much
    while take.sum() != num:
        c = order[step % len(order)]
        if take.sum() < num and take[c] < counts[c]:
            take[c] += 1
        elif take.sum() > num:
            take[np.argmax(take)] -= 1
        step += 1
    rng = np.random.default_rng(seed)
    chosen = [
        rng.permutation(np.flatnonzero(labels == c))[:n] for c, n in zip(classes, take, strict=True)
    ]
    return np.sort(np.concatenate(chosen))


def hold_out(
    labels: np.ndarray, fraction: float, seed: int, *, at_least: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """(kept, held out) indices, both sorted; of each class max(at_least, round(fraction * count))
    are held out, but never the last one.
    """
    rng = np.random.default_rng(seed)
    held = []
    for c in np.unique(labels):
        index = rng.permutation(np.flatnonzero(labels == c))
        held.append(index[: min(max(at_least, round(fraction * len(index))), len(index) - 1)])
    out = np.sort(np.concatenate(held)) if held else np.empty(0, np.int64)
    return np.setdiff1d(np.arange(len(labels)), out), out
