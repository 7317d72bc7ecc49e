"""One stored image is one training example: what networks see, or pixels."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ddengine.data import Preprocess
from ddengine.sets.codec.protocol import Codec, Space, Tensors
from ddengine.sets.codec.values import as_bytes, as_pixels
from ddengine.system.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Identity:
    """One stored image is one training example. Values are free, as mostly published, or bounded."""

    # clamp to what pixels can be after each update (SRe2L), and ship bytes; for mean and standard
    # deviation, not for whitened images
    bounded: bool = False

    @property
    def space(self) -> Space:
        """What networks see."""
        return "model"

    @property
    def per_item(self) -> int:
        """One."""
        return 1

    def fit(self, ipc: int, num_classes: int) -> tuple[Codec, int]:
        """`ipc` items."""
        return self, ipc

    def natural(self, tensors: Tensors) -> int:
        """None."""
        return 0

    def source(self, tensors: Tensors) -> Tensor:
        """0..S-1."""
        return torch.arange(len(tensors["images"]), device=tensors["images"].device)

    def decode(self, tensors: Tensors, index: Tensor) -> Tensor:
        """The stored images themselves."""
        return tensors["images"].index_select(0, index)

    def pack(self, images: Tensor, num_classes: int, preprocess: Preprocess) -> dict[str, Tensor]:
        """The images themselves. Raises UserError where there are no bounds."""
        if self.bounded and preprocess.std is None:
            raise UserError(
                "codec.bounded clamps normalised pixels, and whitened images have no such bounds; "
                "set data.zca or codec.bounded to False."
            )
        return {"images": images}

    def project(self, tensors: Tensors, preprocess: Preprocess) -> None:
        """Clamp where asked to."""
        if self.bounded:
            tensors["images"].copy_(preprocess.clamp(tensors["images"]))

    def ship(self, tensors: Tensors, preprocess: Preprocess) -> tuple[Codec, dict[str, Tensor]]:
        """As they are; bounded ones are pixels, so bytes."""
        if not self.bounded:
            return self, dict(tensors)
        return Pixels().ship(
            {**tensors, "images": preprocess.backward(tensors["images"])}, preprocess
        )

    def loader(self) -> str:
        """The stored images themselves."""
        return 'def decode(tensors):\n    return tensors["images"], torch.arange(len(tensors["images"]))\n'


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """One stored image is one training example, in pixels, which are clamped to [0, 1] after each
    update and shipped as bytes.
    """

    @property
    def space(self) -> Space:
        """Pixels."""
        return "pixel"

    @property
    def per_item(self) -> int:
        """One."""
        return 1

    def fit(self, ipc: int, num_classes: int) -> tuple[Codec, int]:
        """`ipc` items."""
        return self, ipc

    def natural(self, tensors: Tensors) -> int:
        """None."""
        return 0

    def source(self, tensors: Tensors) -> Tensor:
        """0..S-1."""
        return torch.arange(len(tensors["images"]), device=tensors["images"].device)

    def decode(self, tensors: Tensors, index: Tensor) -> Tensor:
        """The stored images."""
        return as_pixels(tensors["images"].index_select(0, index))

    def pack(self, images: Tensor, num_classes: int, preprocess: Preprocess) -> dict[str, Tensor]:
        """The images, clamped."""
        return {"images": images.clamp(0, 1)}

    def project(self, tensors: Tensors, preprocess: Preprocess) -> None:
        """Clamp to [0, 1]."""
        tensors["images"].clamp_(0, 1)

    def ship(self, tensors: Tensors, preprocess: Preprocess) -> tuple[Codec, dict[str, Tensor]]:
        """Bytes."""
        return self, {**tensors, "images": as_bytes(tensors["images"])}

    def loader(self) -> str:
        """Bytes become values in [0, 1]."""
        return """def decode(tensors):
    images = tensors["images"]
    images = images.float() / 255 if images.dtype == torch.uint8 else images
    return images, torch.arange(len(images))
"""
