"""Images as sinusoidal fields (DDiF)."""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Generator, Tensor

from ddengine.data import Preprocess
from ddengine.recipe import require_at_least
from ddengine.sets.codec.packed import in_parts
from ddengine.sets.codec.protocol import Loader, Tensors
from ddengine.sets.codec.values import other_shape
from ddengine.sets.codec.within_bytes import NearImages, decoded_in_parts
from ddengine.system.rng import generator

BYTES = 4  # of a float32


@dataclass(frozen=True, kw_only=True)
class Siren(NearImages):
    """An image is a small network from places to values (DDiF, ICLR 2025; SIREN).

    Stored: "fields" (S, P) in float32, for each image the weights and biases of its layers. A layer
    is sin(w0 (W x + b)), the last one W x + b. Places are (row, column), each from -1 to 1, so that
    images of unequal sides lie in the same square; the released program lets the longer side leave
    it, by dividing both by the height.
    """

    WORKS: ClassVar[tuple[str, ...]] = ("shin2025ddif",)
    MAIN: ClassVar[str] = "fields"

    width: int = 6  # numbers between layers; published for CIFAR-10: 6, 6 and 20
    layers: int = 2  # with a sine
    w0_first: float = 30.0  # factor of the first layer
    w0: float = 10.0  # of the others; published: 10 for images of 32 pixels, 40 for larger ones
    fit_steps: int = (
        5000  # of Adam at fit_lr, in which they come near to the images they start from
    )
    fit_lr: float = 5e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least("codec.width", self.width)
        require_at_least("codec.layers", self.layers)

    def small(self) -> Self:
        """With narrow fields, in few steps."""
        return replace(super().small(), width=min(self.width, 3))

    def shipped_bytes(self, items: int, image_shape: tuple[int, int, int], num_classes: int) -> int:
        """Four bytes a weight."""
        numbers = sum(map(math.prod, shapes_of(self.width, self.layers, image_shape[0])))
        return BYTES * items * num_classes * numbers

    def pack(
        self,
        images: Tensor,
        num_classes: int,
        preprocess: Preprocess,
        rng: Generator | None = None,
    ) -> dict[str, Tensor]:
        """Random fields as published, brought near to the images."""
        shape = tuple(images.shape[1:])
        shapes = shapes_of(self.width, self.layers, shape[0])
        start = first_fields(len(images), shapes, self.w0, rng or generator(0, "siren")).to(images)

        def decode(tensors: dict[str, Tensor], index: Tensor) -> Tensor:
            fields = tensors["fields"].index_select(0, index)
            return field_images(fields, shape, shapes, self.w0_first, self.w0)

        return self.near(images, {"fields": start}, decode)

    def parameters(self, tensors: Tensors) -> dict[str, tuple[str, ...]]:
        """The fields."""
        return {"fields": ("fields",)}

    def decode(self, tensors: Tensors, index: Tensor) -> Tensor:
        """The values of the fields at all pixels."""
        shape = self.image_shape
        shapes = shapes_of(self.width, self.layers, shape[0])

        def images_of(fields: Tensor) -> Tensor:
            return field_images(fields, shape, shapes, self.w0_first, self.w0)

        chosen = tensors["fields"].index_select(0, index)
        return decoded_in_parts(images_of, chosen, self.width * shape[1] * shape[2])

    def dims(self, tensors: Tensors) -> Mapping[str, int]:
        """The fields."""
        return {"fields": 2}

    def memory(self, tensors: Tensors) -> int:
        """The numbers between layers at all pixels of an image."""
        _, height, width = self.image_shape
        return 16 * self.width * height * width

    def flaw(self, tensors: Tensors) -> str | None:
        """Other numbers than the settings say."""
        shapes = shapes_of(self.width, self.layers, self.image_shape[0])
        return other_shape(tensors, {"fields": (None, sum(map(math.prod, shapes)))})

    def loader(self) -> Loader:
        """All fields."""
        return images_of_fields


def first_fields(num: int, shapes: list[tuple[int, ...]], w0: float, rng: Generator) -> Tensor:
    """Fields (num, P) at random, uniform within bounds by the inputs of each layer.

    They are 1 / inputs in the first layer, and sqrt(6 / inputs) / w0 in the others.
    """
    parts = []
    for place, (outputs, inputs) in enumerate(shapes[::2]):
        bound = math.sqrt(6 / inputs) / w0 if place else 1 / inputs
        numbers = outputs * (inputs + 1)
        parts.append((2 * torch.rand(num, numbers, generator=rng) - 1) * bound)
    return torch.cat(parts, 1)


# What is shipped: plain torch, see `Codec.loader`.


def images_of_fields(tensors, settings):
    """(examples, the stored item of each): the values of each field."""
    shape, width = settings["shape"], settings["width"]
    shapes = shapes_of(width, settings["layers"], shape[0])

    def images_of(fields):
        return field_images(fields, shape, shapes, settings["w0_first"], settings["w0"])

    examples = in_parts(images_of, tensors["fields"], width * shape[1] * shape[2])
    return examples, torch.arange(len(examples))


def shapes_of(width, layers, channels):
    """Shapes of weights and biases in the order in which a field holds them."""
    sizes = [2] + [width] * layers + [channels]
    shapes = []
    for inputs, outputs in itertools.pairwise(sizes):
        shapes += [(outputs, inputs), (outputs,)]
    return shapes


def field_images(fields, shape, shapes, w0_first, w0):
    """Images (B, C, H, W) of fields (B, P) with layers of these shapes."""
    channels, height, width = shape
    parts = fields.split([math.prod(part) for part in shapes], 1)
    values = places_of(height, width, fields).expand(len(fields), -1, -1)
    for layer in range(0, len(parts), 2):
        weight = parts[layer].view(-1, *shapes[layer])
        values = torch.baddbmm(parts[layer + 1][:, None], values, weight.mT)
        if layer + 2 < len(parts):
            values = torch.sin((w0 if layer else w0_first) * values)
    return values.mT.reshape(-1, channels, height, width)


def places_of(height, width, like):
    """(H W, 2): row and column of each pixel, row by row, each from -1 to 1."""
    rows = torch.linspace(-1, 1, height, device=like.device, dtype=like.dtype)
    columns = torch.linspace(-1, 1, width, device=like.device, dtype=like.dtype)
    return torch.cartesian_prod(rows, columns)
