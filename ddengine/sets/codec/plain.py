"""One stored image is one training example: what networks see, or pixels."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from ddengine.data import Preprocess
from ddengine.sets.codec.protocol import Codec, Loader, Space, Tensors
from ddengine.sets.codec.values import as_bytes, as_pixels, too_large
from ddengine.system.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Identity(Codec):
    """One stored image is one training example.

    Values are free, as mostly published, or bounded.
    """

    # clamp to what pixels can be after each update (SRe2L), and ship bytes; for mean and standard
    # deviation, not for whitened images
    bounded: bool = False

    @property
    def space(self) -> Space:
        """What networks see."""
        return "model"

    @property
    def keeps_images(self) -> bool:
        """Each as it is."""
        return True

    @property
    def items_are_apart(self) -> bool:
        """Always."""
        return True

    @property
    def keeps_pixels(self) -> bool:
        """Where it is bounded."""
        return self.bounded

    def within_pixels(self) -> Codec:
        """With bounds."""
        return replace(self, bounded=True)

    def shipped_bytes(self, items: int, image_shape: tuple[int, int, int], num_classes: int) -> int:
        """Of bytes where it is bounded, else of float32."""
        return (1 if self.bounded else 4) * items * num_classes * math.prod(image_shape)

    def pack(
        self,
        images: Tensor,
        num_classes: int,
        preprocess: Preprocess,
        rng: Generator | None = None,
    ) -> dict[str, Tensor]:
        """The images themselves. Raises UserError where there are no bounds."""
        if self.bounded and preprocess.std is None:
            raise UserError(
                "codec.bounded clamps normalised pixels, and whitened images have no such bounds; "
                "set data.zca or codec.bounded to False."
            )
        return {"images": images}

    def parameters(self, tensors: Tensors) -> dict[str, tuple[str, ...]]:
        """The images."""
        return {"images": ("images",)}

    def source(self, tensors: Tensors) -> Tensor:
        """0..S-1."""
        return torch.arange(len(tensors["images"]), device=tensors["images"].device)

    def decode(self, tensors: Tensors, index: Tensor) -> Tensor:
        """The stored images themselves."""
        return tensors["images"].index_select(0, index)

    def project(self, tensors: Tensors, preprocess: Preprocess) -> None:
        """Clamp where asked to."""
        if self.bounded:
            tensors["images"].copy_(preprocess.clamp(tensors["images"]))

    def ship(self, tensors: Tensors, preprocess: Preprocess) -> tuple[Codec, dict[str, Tensor]]:
        """As they are; bounded ones are pixels, so bytes."""
        if not self.bounded:
            return self, dict(tensors)
        pixels = preprocess.backward(tensors["images"])
        return Pixels().ship({**tensors, "images": pixels}, preprocess)

    def dims(self, tensors: Tensors) -> Mapping[str, int]:
        """The images."""
        return {"images": 4}

    def flaw(self, tensors: Tensors) -> str | None:
        """Values that no image has."""
        return too_large(tensors["images"])

    def num_images(self, tensors: Tensors) -> float:
        """S."""
        return len(tensors["images"])

    def only(
        self, tensors: Tensors, items: Tensor, num_classes: int
    ) -> tuple[Codec, dict[str, Tensor]]:
        """These images."""
        return self, {**tensors, "images": tensors["images"].index_select(0, items)}

    def loader(self) -> Loader:
        """The stored images themselves."""
        return stored_images


@dataclass(frozen=True, kw_only=True)
class Pixels(Codec):
    """One stored image is one training example, in pixels.

    They are clamped to [0, 1] after each update and shipped as bytes.
    """

    @property
    def keeps_images(self) -> bool:
        """Each as it is."""
        return True

    @property
    def items_are_apart(self) -> bool:
        """Always."""
        return True

    @property
    def keeps_pixels(self) -> bool:
        """Always."""
        return True

    def shipped_bytes(self, items: int, image_shape: tuple[int, int, int], num_classes: int) -> int:
        """A byte a value."""
        return items * num_classes * math.prod(image_shape)

    def pack(
        self,
        images: Tensor,
        num_classes: int,
        preprocess: Preprocess,
        rng: Generator | None = None,
    ) -> dict[str, Tensor]:
        """The images, clamped."""
        return {"images": images.clamp(0, 1)}

    def parameters(self, tensors: Tensors) -> dict[str, tuple[str, ...]]:
        """The images."""
        return {"images": ("images",)}

    def source(self, tensors: Tensors) -> Tensor:
        """0..S-1."""
        return torch.arange(len(tensors["images"]), device=tensors["images"].device)

    def decode(self, tensors: Tensors, index: Tensor) -> Tensor:
        """The stored images."""
        return as_pixels(tensors["images"].index_select(0, index))

    def project(self, tensors: Tensors, preprocess: Preprocess) -> None:
        """Clamp to [0, 1]."""
        tensors["images"].clamp_(0, 1)

    def ship(self, tensors: Tensors, preprocess: Preprocess) -> tuple[Codec, dict[str, Tensor]]:
        """Bytes."""
        return self, {**tensors, "images": as_bytes(tensors["images"])}

    def dims(self, tensors: Tensors) -> Mapping[str, int]:
        """The images."""
        return {"images": 4}

    def flaw(self, tensors: Tensors) -> str | None:
        """Values that no image has."""
        return too_large(tensors["images"])

    def num_images(self, tensors: Tensors) -> float:
        """S."""
        return len(tensors["images"])

    def only(
        self, tensors: Tensors, items: Tensor, num_classes: int
    ) -> tuple[Codec, dict[str, Tensor]]:
        """These images."""
        return self, {**tensors, "images": tensors["images"].index_select(0, items)}

    def loader(self) -> Loader:
        """Bytes become values in [0, 1]."""
        return stored_pixels


# What is shipped: plain torch, see `Codec.loader`.


def stored_images(tensors, settings):
    """(examples, the stored item of each): one stored image is one example."""
    images = tensors["images"]
    return images, torch.arange(len(images))


def stored_pixels(tensors, settings):
    """(examples, the stored item of each): bytes become values in [0, 1]."""
    images = tensors["images"]
    if images.dtype == torch.uint8:
        images = images.float() / 255
    return images, torch.arange(len(images))
