"""Bases, each seen through several small networks that all share (HaBa)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Generator, Tensor

from ddengine.data import Preprocess
from ddengine.recipe import require, require_at_least
from ddengine.sets.codec.packed import in_parts
from ddengine.sets.codec.protocol import Codec, Loader, Tensors
from ddengine.sets.codec.values import other_shape, too_large
from ddengine.sets.codec.within_bytes import WithinBytes, decoded_in_parts
from ddengine.system.errors import UserError
from ddengine.system.rng import generator

BYTES = 2  # of a float16


@dataclass(frozen=True, kw_only=True)
class Hallucinated(WithinBytes):
    """Every stored image is seen through every one of some hallucinators (HaBa).

    Liu et al., NeurIPS 2022. Stored: "images" (S, C, H, W); "kernels" (styles, 2, C, C, 3, 3) and
    "biases" (styles, 2, C) of two convolutions of each hallucinator; "maps" (styles, 2, C, H - 2,
    W - 2), a scale and a shift between them. An example is the second, which enlarges by the border
    that the first cuts, of scale times the first of an image plus shift. There are styles times S
    of them, style by style. Shipped in float16.

    The published budget counts the images alone; here the hallucinators, of all classes, count.
    They start apart by `spread`, and a second network may keep them apart.
    """

    WORKS: ClassVar[tuple[str, ...]] = ("liu2022haba",)

    styles: int = 5  # hallucinators
    spread: float = 0.1  # deviation of kernels, maps and biases from those that change nothing

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least("codec.styles", self.styles)
        require(self.spread >= 0, f"codec.spread is {self.spread:g}; set 0 or more.")

    @property
    def of_all_classes(self) -> str:
        """The hallucinators."""
        return "hallucinators"

    def of_real_images(self) -> Codec:
        """With hallucinators that change nothing but the border, where random ones add noise."""
        return replace(self, spread=0.0)

    def small(self) -> Codec:
        """With two hallucinators at most."""
        return replace(self, styles=min(self.styles, 2), items=2)

    def check_shape(self, image_shape: tuple[int, int, int]) -> None:
        """Raise UserError for images of less than three pixels along a side."""
        if min(image_shape[1:]) < 3:
            raise UserError(
                f"Hallucinators of 3 x 3 pixels do not fit into images of {image_shape[1]} x "
                f"{image_shape[2]}; take another codec."
            )

    def shipped_bytes(self, items: int, image_shape: tuple[int, int, int], num_classes: int) -> int:
        """Two bytes a number, of images and of hallucinators."""
        channels, height, width = image_shape
        of_style = 2 * (9 * channels**2 + channels + channels * (height - 2) * (width - 2))
        return BYTES * (self.styles * of_style + items * num_classes * math.prod(image_shape))

    def pack(
        self,
        images: Tensor,
        num_classes: int,
        preprocess: Preprocess,
        rng: Generator | None = None,
    ) -> dict[str, Tensor]:
        """The images, and hallucinators near to those that change nothing but the border."""
        rng = rng or generator(0, "hallucinated")
        _, channels, height, width = images.shape

        def apart(*shape: int) -> Tensor:
            return (torch.randn(self.styles, 2, *shape, generator=rng) * self.spread).to(images)

        kernels = apart(channels, channels, 3, 3) / 3
        kernels[..., 1, 1] += torch.eye(channels).to(images)
        maps = apart(channels, height - 2, width - 2)
        maps[:, 0] += 1
        return {"images": images, "kernels": kernels, "biases": apart(channels), "maps": maps}

    def parameters(self, tensors: Tensors) -> dict[str, tuple[str, ...]]:
        """Images and hallucinators."""
        return {"images": ("images",), "hallucinators": ("kernels", "biases", "maps")}

    def source(self, tensors: Tensors) -> Tensor:
        """0..S-1, once for each hallucinator."""
        images = tensors["images"]
        return torch.arange(len(images), device=images.device).repeat(self.styles)

    def decode(self, tensors: Tensors, index: Tensor) -> Tensor:
        """Images through hallucinators."""

        def images_of(part: Tensor) -> Tensor:
            return seen(tensors, part)

        return decoded_in_parts(images_of, index, 9 * math.prod(self.image_shape))

    def ship(self, tensors: Tensors, preprocess: Preprocess) -> tuple[Codec, dict[str, Tensor]]:
        """In float16."""
        names = ("images", "kernels", "biases", "maps")
        return self, {**tensors, **{name: tensors[name].half() for name in names}}

    def dims(self, tensors: Tensors) -> Mapping[str, int]:
        """Images and hallucinators."""
        return {"images": 4, "kernels": 6, "biases": 3, "maps": 5}

    def memory(self, tensors: Tensors) -> int:
        """Whose each example is, all numbers in float32, and the neighbours of each pixel."""
        stored = sum(tensors[name].numel() for name in ("images", "kernels", "biases", "maps"))
        examples = self.styles * len(tensors["images"])
        return 8 * examples + 4 * stored + 80 * math.prod(self.image_shape)

    def flaw(self, tensors: Tensors) -> str | None:
        """Values that no image has, and other hallucinators than the settings say."""
        channels, height, width = self.image_shape
        sizes: dict[str, tuple[int | None, ...]] = {
            "images": (None, channels, height, width),
            "kernels": (self.styles, 2, channels, channels, 3, 3),
            "biases": (self.styles, 2, channels),
            "maps": (self.styles, 2, channels, height - 2, width - 2),
        }
        wrong = other_shape(tensors, sizes)
        if wrong is not None:
            return wrong
        return too_large(tensors["images"])

    def loader(self) -> Loader:
        """Every image through every hallucinator."""
        return hallucinated_images


# What is shipped: plain torch, see `Codec.loader`.


def hallucinated_images(tensors, settings):
    """(examples, the stored item of each): every image through every hallucinator."""
    num = len(tensors["images"])
    index = torch.arange(num * settings["styles"])

    def images_of(part):
        return seen(tensors, part)

    return in_parts(images_of, index, 9 * math.prod(settings["shape"])), index % num


def seen(tensors, index):
    """Images (B, C, H, W): the one at index mod S through the hallucinator at index / S."""
    num = len(tensors["images"])
    style = index // num
    stored = ("images", "kernels", "biases", "maps")
    images, kernels, biases, maps = (
        tensors[name].float() if tensors[name].dtype == torch.float16 else tensors[name]
        for name in stored
    )
    kernels, biases, maps = kernels[style], biases[style], maps[style]
    inner = each_convolved(images[index % num], kernels[:, 0], biases[:, 0])
    framed = torch.nn.functional.pad(maps[:, 0] * inner + maps[:, 1], (2, 2, 2, 2))
    return each_convolved(framed, kernels[:, 1], biases[:, 1])


def each_convolved(images, kernels, biases):
    """Images (B, C, h - 2, w - 2): each of (B, C, h, w) by its kernel (B, C, C, 3, 3)."""
    height, width = images.shape[2] - 2, images.shape[3] - 2
    neighbours = torch.nn.functional.unfold(images, 3)
    flat = torch.baddbmm(biases[:, :, None], kernels.flatten(2), neighbours)
    return flat.view(len(images), -1, height, width)
