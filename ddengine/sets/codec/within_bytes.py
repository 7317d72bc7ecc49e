"""Codecs that hold as many images as a budget of bytes leaves room for."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self, TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ddengine.recipe import Recipe, require, require_at_least
from ddengine.sets.codec.packed import in_parts
from ddengine.sets.codec.protocol import BYTES_OF_VALUE, Codec, Space, Tensors, Unit
from ddengine.system import log
from ddengine.system.errors import UserError

ImageShape = tuple[int, int, int]
KnownT = TypeVar("KnownT")


@dataclass(frozen=True, kw_only=True)
class WithinBytes(Codec):
    """A codec of images that are coarser than real ones, and more in the same bytes.

    It says in `shipped_bytes` what a set takes, and holds as many images as the budget leaves room
    for: `ipc` images of 4 bytes a value (or 1, `budget`), or so many bytes. Its values are what
    networks see, and examples are items, unless it says otherwise.
    """

    WORKS: ClassVar[tuple[str, ...]] = ()  # to cite
    MAIN: ClassVar[str] = "images"  # the tensor that has a row for each item

    budget: Literal["f32", "u8"] = "f32"  # bytes of a value in the images that `ipc` counts
    items: int | None = None  # images per class; None: as many as the budget holds
    shape: tuple[int, ...] | None = None  # of an image, (C, H, W); None: that of the data

    def __post_init__(self) -> None:
        require_at_least("codec.items", self.items)

    @property
    def cites(self) -> tuple[str, ...]:
        """Works to cite."""
        return self.WORKS

    @property
    def space(self) -> Space:
        """What networks see."""
        return "model"

    @property
    def approximates(self) -> bool:
        """Always."""
        return True

    @property
    def held(self) -> int:
        """Images per class, of a codec that was fitted to a budget."""
        return self.known(self.items, "items")

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image, of a codec that was fitted to a budget."""
        channels, height, width = self.known(self.shape, "shape")
        return channels, height, width

    def known(self, value: KnownT | None, name: str) -> KnownT:
        """The value of a field that fitting sets. Raises UserError where nothing did."""
        if value is None:
            raise UserError(
                f"The codec {type(self).__name__} does not say {name}, because it was not fitted "
                f"to a budget; set codec.{name}."
            )
        return value

    @property
    def by_item(self) -> tuple[str, ...]:
        """The names of tensors that have a row for each item, where they are there."""
        return (self.MAIN,)

    def only(
        self, tensors: Tensors, items: Tensor, num_classes: int
    ) -> tuple[Self, dict[str, Tensor]]:
        """The rows of these items; what all share stays."""
        left = dict(tensors)
        for name in self.by_item:
            if name in left:
                left[name] = left[name].index_select(0, items)
        return replace(self, items=len(items) // num_classes), left

    def small(self) -> Self:
        """With two images a class."""
        return replace(self, items=2)

    def counted_in(self, unit: Unit) -> Self:
        """With this budget."""
        return replace(self, budget=unit)

    def check_shape(self, image_shape: ImageShape) -> None:
        """Raise UserError for images that the settings do not suit; the default takes all."""

    def fit(self, ipc: int, image_shape: ImageShape, num_classes: int) -> tuple[Codec, int]:
        """With as many images as the bytes of `ipc` images hold, or those asked for."""
        values = ipc * num_classes * math.prod(image_shape)
        return self.within(values * BYTES_OF_VALUE[self.budget], image_shape, num_classes)

    def within(
        self, num_bytes: int, image_shape: ImageShape, num_classes: int
    ) -> tuple[Codec, int]:
        """With as many images as these bytes hold, or those asked for."""
        self.check_shape(image_shape)
        most = self.most_items(num_bytes, image_shape, num_classes)
        if self.items is not None and self.items > most:
            needed = self.shipped_bytes(self.items, image_shape, num_classes)
            raise UserError(
                f"codec.items {self.items} do not fit into {num_bytes} bytes, which hold {most} "
                f"images of each of {num_classes} classes; leave it out, or set --budget {needed}."
            )
        items = self.items or most
        return replace(self, items=items, shape=tuple(image_shape)), items

    def source(self, tensors: Tensors) -> Tensor:
        """0..S-1."""
        rows = tensors[self.MAIN]
        return torch.arange(len(rows), device=rows.device)

    def num_images(self, tensors: Tensors) -> float:
        """How many images have as many bytes, at those of a value in `budget`."""
        num_classes = int(self.source(tensors).max() + 1) // self.held
        size = self.shipped_bytes(self.held, self.image_shape, num_classes)
        return size / math.prod(self.image_shape) / BYTES_OF_VALUE[self.budget]


class NearImages(WithinBytes):
    """A codec that comes near to the images that it starts from by steps of Adam.

    It has the two fields below, each where its other fields have it.
    """

    fit_steps: int
    fit_lr: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.fit_steps >= 0, f"codec.fit_steps is {self.fit_steps}; set 0 or more.")

    def small(self) -> Self:
        """With two images a class, in few steps."""
        return replace(super().small(), fit_steps=2)

    def near(
        self,
        images: Tensor,
        start: dict[str, Tensor],
        decode: Callable[[dict[str, Tensor], Tensor], Tensor],
    ) -> dict[str, Tensor]:
        """The tensors after these steps, as `learned_from_images` says them."""
        return learned_from_images(images, start, decode, steps=self.fit_steps, lr=self.fit_lr)


def fitted(recipe: Recipe, image_shape: ImageShape, num_classes: int) -> tuple[Codec, int]:
    """(the codec of a recipe for its budget, items stored per class).

    Raises UserError for a budget that holds no image of each class.
    """
    codec = recipe.codec
    if not recipe.budget:
        return codec.fit(recipe.ipc, image_shape, num_classes)
    count, unit = recipe.budget_parts
    if unit is None:
        return codec.within(count, image_shape, num_classes)
    num_bytes = count * num_classes * math.prod(image_shape) * BYTES_OF_VALUE[unit]
    return codec.counted_in(unit).within(num_bytes, image_shape, num_classes)


def decoded_in_parts(function: Callable[[Tensor], Tensor], rows: Tensor, numbers: int) -> Tensor:
    """As `in_parts`; where gradients are wanted, parts are computed again for them.

    So memory does not grow with the number of rows, but by the gradients of the rows themselves.
    Rows of whole numbers are the places of what is learned, which `function` looks up.
    """
    wanted = rows.requires_grad or not rows.is_floating_point()
    if not (torch.is_grad_enabled() and wanted):
        return in_parts(function, rows, numbers)

    def again(part: Tensor) -> Tensor:
        if len(part) == len(rows):
            return function(part)
        return checkpoint(function, part, use_reentrant=False, preserve_rng_state=False)

    return in_parts(again, rows, numbers)


def learned_from_images(
    images: Tensor,
    start: dict[str, Tensor],
    decode: Callable[[dict[str, Tensor], Tensor], Tensor],
    *,
    steps: int,
    lr: float,
    batch: int = 256,
) -> dict[str, Tensor]:
    """The tensors whose decoded examples come near to images (N, C, H, W), by Adam.

    `decode(tensors, index)` are examples (B, C, H, W). Each step sees all images, in batches whose
    gradients are added, and lowers the sum over images of the mean squared error. The steps draw
    nothing, so the result follows from the start.
    """
    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in start.items()}
    optimiser = torch.optim.Adam(leaves.values(), lr=lr)
    everything = torch.arange(len(images), device=images.device)
    with torch.enable_grad(), log.progress("images into the codec", steps) as bar:
        for _ in range(steps):
            optimiser.zero_grad()
            error = 0.0
            for index in everything.split(batch):
                off = decode(leaves, index) - images.index_select(0, index)
                loss = off.square().flatten(1).mean(1).sum()
                loss.backward()
                error += float(loss.detach())
            optimiser.step()
            bar.advance(f"error {error / len(images):.4f}")
    return {name: leaf.detach() for name, leaf in leaves.items()}
