"""Which images experts see in which epoch, easy ones first. PAD, Li et al., arXiv 2408.03360.

Images are ordered within their class by EL2N, the error of networks after a few updates. The
scores are computed once for a store and lie in it, so that all its experts see the same order.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Generator, Tensor, nn

from ddengine.data import RealSet
from ddengine.recipe import require, require_at_least
from ddengine.sets import coreset
from ddengine.system import files, log
from ddengine.system.rng import generator

FILE = "difficulty.safetensors"  # in the folder of a store


@dataclass(frozen=True, kw_only=True)
class EasyFirst:
    """A share of each class, the easiest, that grows to all; later the easiest are left out."""

    first: float = 0.75  # share of each class in the first epoch
    all_after: int = 20  # epochs until all are seen; the share grows linearly
    drop_after: tuple[int, ...] = (40, 60)  # epochs after which the easiest are left out, ascending
    drop: tuple[float, ...] = (0.1, 0.2)  # share that is left out after each of them
    networks: int = 3  # whose errors are averaged
    updates: int = 200  # of each of these networks
    lr: float = 0.01  # of these updates, which have momentum 0.9

    def __post_init__(self) -> None:
        where = "buffer.curriculum"
        require_at_least(f"{where}.all_after", self.all_after)
        require_at_least(f"{where}.networks", self.networks)
        require_at_least(f"{where}.updates", self.updates)
        require(0 < self.first <= 1, f"{where}.first must be above 0 and at most 1.")
        require(
            len(self.drop) == len(self.drop_after)
            and list(self.drop_after) == sorted(self.drop_after),
            f"{where}.drop {self.drop} has a share for each of the ascending epochs of "
            f"{where}.drop_after, which are {self.drop_after}; give as many of both.",
        )
        require(
            all(0 <= share < 1 for share in self.drop),
            f"{where}.drop are shares of a class and must be below 1, got {self.drop}.",
        )

    @property
    def cites(self) -> tuple[str, ...]:
        """Works to cite."""
        return ("li2024pad", "paul2021el2n")

    def share(self, epoch: int) -> tuple[float, float]:
        """From which part of a class, easy to hard, to which an epoch sees, counted from 0."""
        grown = min(1.0, epoch / self.all_after)
        low = 0.0
        for after, drop in zip(self.drop_after, self.drop, strict=True):
            if epoch >= after:
                low = drop
        return low, self.first + (1 - self.first) * grown

    def seen(self, ranks: Tensor, epoch: int) -> Tensor:
        """The indices (n,) of the images of an epoch, by their ranks (N,), see `ranks`."""
        low, high = self.share(epoch)
        return ((ranks >= low) & (ranks < high)).nonzero().flatten()

    def counts(self, ranks: Tensor, epochs: int) -> dict[int, int]:
        """How many images epochs see, with the first epoch of each number."""
        of_share: dict[tuple[float, float], int] = {}
        for epoch in range(epochs):
            of_share.setdefault(self.share(epoch), epoch)
        first: dict[int, int] = {}
        for epoch in of_share.values():
            first.setdefault(len(self.seen(ranks, epoch)), epoch)
        return first

    def check(self, members: Sequence[Tensor], epochs: int) -> list[int]:
        """How many images epochs of classes with such members see, whatever their scores are.

        Raises UserError where an epoch sees none.
        """
        num = sum(map(len, members))
        counts = self.counts(ranks(members, torch.zeros(num)), epochs)
        require(
            0 not in counts,
            f"Epoch {counts.get(0, 0) + 1} of buffer.curriculum sees none of the {num} images, "
            "because its share of each class begins where it ends or holds less than an image; "
            "lower buffer.curriculum.drop, or take more images per class.",
        )
        return list(counts)


def ranks(members: Sequence[Tensor], scores: Tensor) -> Tensor:
    """Where each image lies in its class, (N,) in [0, 1): the part of it that is easier.

    Of scores (N,), which are low for easy images; of equal ones the first is easier.
    """
    placed = torch.zeros(len(scores), dtype=torch.float64)
    for of_class in members:
        order = scores[of_class].argsort(stable=True)
        placed[of_class[order]] = torch.arange(len(of_class)).double() / max(1, len(of_class))
    return placed


def of_store(
    folder: Path,
    config: EasyFirst,
    real: RealSet,
    new_model: Callable[[Generator], nn.Module],
    seed: int,
) -> Tensor:
    """The ranks of the images of a store, which are computed where it has none yet."""
    path = folder / FILE
    if not path.is_file():
        log.say(f"ordering images from easy to hard by {config.networks} networks")
        trained = []
        for number in range(config.networks):
            rng = generator(seed, "difficulty", number)
            network = coreset.train(real, new_model, rng, steps=config.updates, lr=config.lr)
            trained.append(network)
        scores = coreset.el2n_scores(real, trained)
        files.write_tensors(path, {"ranks": ranks(real.members, scores)})
    return files.read_tensor(path, "ranks", (len(real),))
