"""Images as sums of Gaussians (GSDD)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Generator, Tensor

from ddengine.data import Preprocess
from ddengine.recipe import require, require_at_least
from ddengine.sets.codec.packed import in_parts
from ddengine.sets.codec.protocol import Codec, Loader, Tensors
from ddengine.sets.codec.values import other_shape
from ddengine.sets.codec.within_bytes import NearImages, decoded_in_parts
from ddengine.system.rng import generator

GEOMETRY = 5  # numbers of a Gaussian beside its colour and its opacity
BYTES = 2  # of a bfloat16
INSIDE = 1 - 1e-3  # the outermost place of a centre, in units of half an image
NARROWEST = 1e-3  # of a Gaussian that no prefilter widens, in pixels
FIRST_OPACITY = 0.6  # at which neighbours that overlap add up to about one


@dataclass(frozen=True, kw_only=True)
class Gaussians(NearImages):
    """An image is a sum of coloured Gaussians (GSDD, arXiv 2509.26219).

    Stored: "primitives" (S, M, 6 + C) in bfloat16, for each Gaussian the place u, v of its centre
    in [-1, 1], where the image ends; the factor l11, l21, l22 of its covariance L L^T in pixels;
    its colour and its opacity a. A pixel is the sum over Gaussians of a exp(-d^T S^-1 d / 2) colour
    with d from the centre to the pixel and S = L L^T + I / 12, the box of a pixel (`prefilter`);
    with `supersampling` it is the mean of four points in it. Sides of an image may differ.

    Real numbers are learned, and rounded to bfloat16 whenever they are used; the gradient passes
    straight through. In each step `barrier` times the mean over Gaussians of -log(1 - u^2) -
    log(1 - v^2) is added to the loss.
    """

    WORKS: ClassVar[tuple[str, ...]] = ("jiang2025gsdd",)
    MAIN: ClassVar[str] = "primitives"

    primitives: int = 22  # Gaussians of an image, M; published: 22 at one image per class
    prefilter: bool = True  # widen each by the box of a pixel
    supersampling: bool = True  # four points of each pixel
    barrier: float = 0.1  # weight of the barrier at the edges
    fit_steps: int = (
        1000  # of Adam at fit_lr, in which they come near to the images they start from
    )
    fit_lr: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least("codec.primitives", self.primitives)
        require(self.barrier >= 0, f"codec.barrier is {self.barrier:g}; set 0 or more.")

    def small(self) -> Self:
        """With few Gaussians, in few steps."""
        return replace(super().small(), primitives=min(self.primitives, 4))

    def shipped_bytes(self, items: int, image_shape: tuple[int, int, int], num_classes: int) -> int:
        """Two bytes a number."""
        numbers = self.primitives * (GEOMETRY + image_shape[0] + 1)
        return BYTES * items * num_classes * numbers

    def pack(
        self,
        images: Tensor,
        num_classes: int,
        preprocess: Preprocess,
        rng: Generator | None = None,
    ) -> dict[str, Tensor]:
        """Round Gaussians at random places, brought near to the images.

        While that is done, a pixel is one point.
        """
        shape = tuple(images.shape[1:])
        start = scattered(images, self.primitives, rng or generator(0, "gaussians"))

        def decode(tensors: dict[str, Tensor], index: Tensor) -> Tensor:
            return rendered(tensors["primitives"].index_select(0, index), shape, 1, self.prefilter)

        made = self.near(images, {"primitives": start}, decode)
        self.project(made, preprocess)
        return made

    def parameters(self, tensors: Tensors) -> dict[str, tuple[str, ...]]:
        """The Gaussians."""
        return {"primitives": ("primitives",)}

    def decode(self, tensors: Tensors, index: Tensor) -> Tensor:
        """The sums of rounded Gaussians."""
        points = 2 if self.supersampling else 1

        def images_of(primitives: Tensor) -> Tensor:
            return rendered(as_stored(primitives), self.image_shape, points, self.prefilter)

        chosen = tensors["primitives"].index_select(0, index)
        numbers = numbers_of(tensors["primitives"], self.image_shape, points)
        return decoded_in_parts(images_of, chosen, numbers)

    def penalty(self, tensors: Tensors) -> Tensor | None:
        """The barrier at the edges."""
        if not self.barrier:
            return None
        return self.barrier * at_the_edges(tensors["primitives"])

    def project(self, tensors: Tensors, preprocess: Preprocess) -> None:
        """Move centres inside the image; without a prefilter, widen Gaussians of no width."""
        primitives = tensors["primitives"]
        primitives[..., :2].clamp_(-INSIDE, INSIDE)
        if not self.prefilter:
            widths = primitives[..., 2:5:2]
            widths.copy_(torch.where(widths.abs() < NARROWEST, NARROWEST, widths))

    def ship(self, tensors: Tensors, preprocess: Preprocess) -> tuple[Codec, dict[str, Tensor]]:
        """In bfloat16."""
        return self, {**tensors, "primitives": tensors["primitives"].bfloat16()}

    def dims(self, tensors: Tensors) -> Mapping[str, int]:
        """The Gaussians of each image."""
        return {"primitives": 3}

    def memory(self, tensors: Tensors) -> int:
        """A number for each Gaussian and point of an image, some times."""
        points = 2 if self.supersampling else 1
        return 16 * numbers_of(tensors["primitives"], self.image_shape, points)

    def flaw(self, tensors: Tensors) -> str | None:
        """Other numbers than the settings say."""
        numbers = GEOMETRY + self.image_shape[0] + 1
        return other_shape(tensors, {"primitives": (None, self.primitives, numbers)})

    def loader(self) -> Loader:
        """All sums."""
        return images_of_gaussians


def scattered(images: Tensor, num: int, rng: Generator) -> Tensor:
    """Gaussians (S, num, 6 + C) at random places of images (S, C, H, W), in their colours there.

    They are as wide as half the side of a square of their share of the image.
    """
    items, channels, height, width = images.shape
    places = torch.rand(items, num, 2, generator=rng).to(images)
    column = (places[..., 0] * width).long()
    row = (places[..., 1] * height).long()
    pixel = (row * width + column).unsqueeze(1).expand(-1, channels, -1)
    colours = torch.gather(images.flatten(2), 2, pixel).mT
    wide = torch.full_like(places[..., :1], math.sqrt(height * width / num) / 2)
    none = torch.zeros_like(wide)
    opacity = torch.full_like(wide, FIRST_OPACITY)
    inside = (2 * places - 1).clamp(-INSIDE, INSIDE)
    return torch.cat([inside, wide, none, wide, colours, opacity], 2)


def as_stored(primitives: Tensor) -> Tensor:
    """Numbers as bfloat16 says them, with the gradient of the real ones."""
    if primitives.dtype == torch.bfloat16:
        return primitives.float()
    rounded = primitives.detach().bfloat16().to(primitives.dtype)
    return rounded + (primitives - primitives.detach())


def at_the_edges(primitives: Tensor) -> Tensor:
    """The mean over Gaussians (S, M, 6 + C) of -log(1 - u^2) - log(1 - v^2)."""
    return -torch.log1p(-primitives[..., :2].square()).sum(2).mean()


# What is shipped: plain torch, see `Codec.loader`.


def images_of_gaussians(tensors, settings):
    """(examples, the stored item of each): the sum of the Gaussians of each."""
    points = 2 if settings["supersampling"] else 1
    shape, prefilter = settings["shape"], settings["prefilter"]

    def images_of(primitives):
        if primitives.dtype == torch.bfloat16:
            return rendered(primitives.float(), shape, points, prefilter)
        rounded = primitives.bfloat16().to(primitives.dtype)
        return rendered(rounded, shape, points, prefilter)

    primitives = tensors["primitives"]
    examples = in_parts(images_of, primitives, numbers_of(primitives, shape, points))
    return examples, torch.arange(len(examples))


def numbers_of(primitives, shape, points):
    """Numbers that an image is made of on the way: one for each Gaussian and point."""
    return primitives.shape[1] * shape[1] * shape[2] * points**2


def rendered(primitives, shape, points, prefilter):
    """Images (B, C, H, W) of Gaussians (B, M, 6 + C); a pixel is the mean of points^2 in it.

    With the lower triangular factor of S, the exponent is minus the squares of two numbers: one
    that depends on the column alone, and one that follows from it and the row.
    """
    channels, height, width = shape
    u, v, l11, l21, l22 = primitives[..., :5, None].unbind(2)
    box = 1 / 12 if prefilter else 0.0
    over_rows = l11.square() + box
    across = l11 * l21 / over_rows
    # what is left of the variance of rows: written so that no digits cancel
    left = l22.square() + box + l21.square() * box / over_rows
    like = {"dtype": primitives.dtype, "device": primitives.device}
    columns = (torch.arange(width * points, **like) + 0.5) / points
    rows = (torch.arange(height * points, **like) + 0.5) / points
    from_centre = columns - (u + 1) * width / 2
    below_centre = rows - (v + 1) * height / 2
    narrowing = (2 * left).rsqrt()
    along = (below_centre * narrowing)[:, :, :, None]
    along = along - (from_centre * across * narrowing)[:, :, None, :]
    exponent = -from_centre.square() / (2 * over_rows)
    density = torch.addcmul(exponent[:, :, None, :], along, along, value=-1).exp()
    colours = primitives[..., 5:-1] * primitives[..., -1:]
    images = torch.bmm(colours.mT, density.flatten(2))
    cells = images.view(-1, channels, height, points, width, points)
    return cells.mean((3, 5))
