"""Images as points, between which distances are taken: their pixels, and their embeddings."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ddengine.data import Data, RealSet
from ddengine.sets.synthetic import SyntheticSet
from ddengine.system.errors import UserError

BATCH = 1000  # images a network looks at at a time

Rows = Callable[[Tensor], Tensor]  # indices (B,) -> points (B, D) float64
Embed = Callable[[Tensor], Tensor]  # preprocessed images (B, C, H, W) -> features (B, D)


@dataclass(frozen=True)
class Points:
    """Points that are computed when they are asked for."""

    rows: Rows  # of indices within [0, num)
    num: int

    def at(self, index: Tensor) -> "Points":
        """The points at `index` (N,) alone, in its order."""
        return Points(lambda chosen: self.rows(index[chosen]), len(index))

    def then(self, others: "Points") -> "Points":
        """These points and `others` after them."""

        def rows(index: Tensor) -> Tensor:
            first, rest = index[index < self.num], index[index >= self.num]
            parts = []
            if len(first):
                parts.append(self.rows(first))
            if len(rest):
                parts.append(others.rows(rest - self.num))
            return torch.cat(parts)

        return Points(rows, self.num + others.num)


@dataclass(frozen=True)
class Space:
    """The points of a set and of both splits of real images."""

    distilled: Points
    train: Points
    test: Points


def pixel_space(syn: SyntheticSet, data: Data, test: RealSet) -> Space:
    """Pixels in [0, 1], divided by the root of their number.

    So distances are root mean squares of differences. Set pixels are clamped to what an image can
    be, which moves them away from no real image.
    """
    device = data.train.device

    def flattened(values: Tensor) -> Tensor:
        return values.to(device).flatten(1).double() / values[0].numel() ** 0.5

    def real_points(real: RealSet) -> Points:
        def rows(index: Tensor) -> Tensor:
            return flattened(real.stored(index).double() / 255)

        return Points(rows, len(real))

    def set_rows(index: Tensor) -> Tensor:
        return flattened(syn.pixels(index).clamp(0, 1))

    return Space(Points(set_rows, len(syn)), real_points(data.train), real_points(test))


def embedding_space(syn: SyntheticSet, data: Data, test: RealSet, embed: Embed) -> Space:
    """The features of images, of length 1: distances are the root of 2 - 2 cos, 0 to 2.

    Rows raise UserError where the features are not finite.
    """
    device = data.train.device

    def points(images: Rows, num: int) -> Points:
        def rows(index: Tensor) -> Tensor:
            parts = [_unit(embed(images(few))) for few in index.split(BATCH)]
            return torch.cat(parts)

        return Points(rows, num)

    def set_images(index: Tensor) -> Tensor:
        return syn.batch(index).images.to(device)

    return Space(
        points(set_images, len(syn)),
        points(data.train.images, len(data.train)),
        points(test.images, len(test)),
    )


def _unit(features: Tensor) -> Tensor:
    """(B, D) float64 of length 1; a vector of zeros stays one.

    Raises UserError where the features are not finite, because distances between such say nothing.
    """
    if not features.isfinite().all():
        raise UserError(
            "The network that embeds the images says nothing finite of some, because its training "
            "diverged; choose another with --model, "
            "or fewer updates with --full_steps."
        )
    return nn.functional.normalize(features.flatten(1).double(), dim=1)
