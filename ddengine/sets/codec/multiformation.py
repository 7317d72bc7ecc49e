"""Several tiles in each stored image (IDC)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn import functional

from ddengine.data import Preprocess
from ddengine.recipe import require
from ddengine.sets.codec.packed import resized
from ddengine.sets.codec.protocol import Codec, Loader, Tensors
from ddengine.sets.codec.resizing import resize
from ddengine.sets.codec.values import too_large
from ddengine.system.errors import UserError

# pixel value of what is missing at the bottom and the right of an image that the tiles do not
# divide
PADDING = 0.5


@dataclass(frozen=True, kw_only=True)
class MultiFormation(Codec):
    """Every stored image holds factor x factor tiles, each resized to a complete training example.

    This is IDC (Kim et al., ICML 2022, section 4). Where the factor does not divide the image, it
    is padded at the bottom and the right. Tiles are resized bilinearly, with half-pixel centres,
    the edge repeated. Decoded examples come in the order tile (0, 0) of all items, tile (0, 1) of
    all items, ..., row by row. The released code clamps once per network; here the stored values
    are clamped to [0, 1] after each update.
    """

    # tiles along each side; published: 2 for images of up to 32 pixels, 3 for larger ones
    factor: int = 2

    @property
    def cites(self) -> tuple[str, ...]:
        """Works to cite."""
        return ("kim2022idc",)

    def __post_init__(self) -> None:
        require(self.factor >= 1, f"codec.factor must be at least 1, got {self.factor}.")

    @property
    def per_item(self) -> int:
        """The tiles of an image."""
        return self.factor**2

    def _tile(self, images: Tensor) -> tuple[int, int]:
        """Height and width of a tile."""
        height, width = images.shape[2:]
        return -(-height // self.factor), -(-width // self.factor)

    def shipped_bytes(self, items: int, image_shape: tuple[int, int, int], num_classes: int) -> int:
        """Of float32."""
        return 4 * items * num_classes * math.prod(image_shape)

    def pack(
        self,
        images: Tensor,
        num_classes: int,
        preprocess: Preprocess,
        rng: Generator | None = None,
    ) -> dict[str, Tensor]:
        """Each image becomes a tile, shrunk by taking the nearest pixels (as published)."""
        n = self.factor
        num, channels, height, width = images.shape
        if n > min(height, width):
            raise UserError(
                f"codec.factor {n} is more than the {min(height, width)} pixels of an image's "
                "side; lower codec.factor."
            )
        rows, columns = self._tile(images)
        if (n - 1) * rows >= height or (n - 1) * columns >= width:
            raise UserError(
                f"codec.factor {n} cuts images of {height} x {width} pixels into tiles of {rows} "
                f"x {columns}, the last of which hold nothing but "
                "padding; set codec.factor to a divisor of the side."
            )
        small = functional.interpolate(images, size=(rows, columns), mode="nearest")
        tiles = small.view(num // n**2, n, n, channels, rows, columns)
        in_place = tiles.permute(0, 3, 1, 4, 2, 5)
        packed = in_place.reshape(-1, channels, n * rows, n * columns)
        cut = packed[:, :, :height, :width]
        return {"images": cut.contiguous().clamp(0, 1)}

    def parameters(self, tensors: Tensors) -> dict[str, tuple[str, ...]]:
        """The images."""
        return {"images": ("images",)}

    def source(self, tensors: Tensors) -> Tensor:
        """0..S-1, once for each tile."""
        images = tensors["images"]
        return torch.arange(len(images), device=images.device).repeat(self.per_item)

    def decode(self, tensors: Tensors, index: Tensor) -> Tensor:
        """The tiles at `index`, resized."""
        images = tensors["images"]
        n = self.factor
        num, channels, height, width = images.shape
        rows, columns = self._tile(images)
        right = n * columns - width
        below = n * rows - height
        padded = functional.pad(images, (0, right, 0, below), value=PADDING)
        tiles = padded.view(num, channels, n, rows, n, columns)
        in_order = tiles.permute(2, 4, 0, 1, 3, 5)
        tiles = in_order.reshape(n * n * num, channels, rows, columns)
        return resize(tiles.index_select(0, index), (height, width))

    def project(self, tensors: Tensors, preprocess: Preprocess) -> None:
        """Clamp to [0, 1]."""
        tensors["images"].clamp_(0, 1)

    def dims(self, tensors: Tensors) -> Mapping[str, int]:
        """The images."""
        return {"images": 4}

    def memory(self, tensors: Tensors) -> int:
        """Whose each tile is, and the images, padded to whole tiles."""
        num, channels, _, _ = tensors["images"].shape
        rows, columns = self._tile(tensors["images"])
        pixels = channels * rows * columns
        return num * self.per_item * (8 + 4 * pixels)

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
        """All tiles."""
        return tiles_of_images


# What is shipped: plain torch, see `Codec.loader`.


def tiles_of_images(tensors, settings):
    """(examples, the stored item of each): the tiles of every stored image, resized.

    There are n x n of them. What they do not divide is padded with grey.
    """
    images, n = tensors["images"], settings["factor"]
    num, channels, height, width = images.shape
    rows, columns = -(-height // n), -(-width // n)
    missing = (0, n * columns - width, 0, n * rows - height)
    padded = torch.nn.functional.pad(images, missing, value=0.5)
    tiles = padded.view(num, channels, n, rows, n, columns).permute(2, 4, 0, 1, 3, 5)
    examples = resized(tiles.reshape(-1, channels, rows, columns), (height, width))
    return examples, torch.arange(num).repeat(n * n)
