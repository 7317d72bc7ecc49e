"""Parametrisations of the stored tensors: how training examples are made from what is stored."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from ddengine.errors import UserError
from ddengine.recipe import require
from ddengine.runtime import exact_matmul

Tensors = Mapping[str, Tensor]
Space = Literal["pixel", "model"]


class Codec(Protocol):
    """A frozen dataclass without state: its fields are its configuration, what is learned lies in the tensors."""

    @property
    def space(self) -> Space:
        """What the stored values are: pixels in [0, 1], preprocessed after decoding, or what networks see."""
        ...

    @property
    def per_item(self) -> int:
        """Training examples that one stored item decodes to."""
        ...

    def source(self, tensors: Tensors) -> Tensor:
        """(N,) int64: the stored item of each decoded example."""
        ...

    def decode(self, tensors: Tensors, index: Tensor) -> Tensor:
        """Decoded examples (B, C, H, W) at `index` (B,) of N, differentiable in the tensors as often as wanted."""
        ...

    def pack(self, images: Tensor) -> Tensor:
        """Stored images (S, C, H, W) to start from, made of `per_item` images each: (S * per_item, C, H, W), those of an item in a row.

        Raises UserError when the images do not suit the configuration.
        """
        ...

    def project(self, tensors: Tensors) -> None:
        """Move the tensors into their valid range, in place; called after each outer step."""
        ...

    def loader(self) -> str:
        """Python source of `decode(tensors)` -> (all N examples (N, C, H, W), their stored items (N,)), for the shipped `load.py`.

        Plain torch, which the source may call `torch` and `torch.nn.functional`; no engine.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Identity:
    """One stored image is one training example; no valid range (as published: values are free)."""

    @property
    def space(self) -> Space:
        """What networks see."""
        return "model"

    @property
    def per_item(self) -> int:
        """One."""
        return 1

    def source(self, tensors: Tensors) -> Tensor:
        """0..S-1."""
        return torch.arange(len(tensors["images"]), device=tensors["images"].device)

    def decode(self, tensors: Tensors, index: Tensor) -> Tensor:
        """The stored images themselves."""
        return tensors["images"].index_select(0, index)

    def pack(self, images: Tensor) -> Tensor:
        """The images themselves."""
        return images

    def project(self, tensors: Tensors) -> None:
        """Nothing: every value is valid."""

    def loader(self) -> str:
        """The stored images themselves."""
        return 'def decode(tensors):\n    return tensors["images"], torch.arange(len(tensors["images"]))\n'


PADDING = 0.5  # pixel value of what is missing at the bottom and the right of an image that the tiles do not divide


@dataclass(frozen=True, kw_only=True)
class MultiFormation:
    """Every stored image holds factor x factor tiles, each resized to a whole training example (IDC; Kim et al., ICML 2022, section 4).

    Where the factor does not divide the image, it is padded at the bottom and the right. Tiles are resized bilinearly, with half-pixel centres,
    the edge repeated. Decoded examples come in the order tile (0, 0) of all items, tile (0, 1) of all items, ..., row by row. The released
    code clamps once per network; here the stored values are clamped to [0, 1] after each update.
    """

    factor: int = 2  # tiles along each side; published: 2 for images of up to 32 pixels, 3 for larger ones

    @property
    def cites(self) -> tuple[str, ...]:
        """Works to cite."""
        return ("kim2022idc",)

    def __post_init__(self) -> None:
        require(self.factor >= 1, f"codec.factor must be at least 1, got {self.factor}.")

    @property
    def space(self) -> Space:
        """Pixels."""
        return "pixel"

    @property
    def per_item(self) -> int:
        """The tiles of an image."""
        return self.factor**2

    def _tile(self, images: Tensor) -> tuple[int, int]:
        """Height and width of a tile."""
        return -(-images.shape[2] // self.factor), -(-images.shape[3] // self.factor)

    def source(self, tensors: Tensors) -> Tensor:
        """0..S-1, once for each tile."""
        return torch.arange(len(tensors["images"]), device=tensors["images"].device).repeat(self.per_item)

    def decode(self, tensors: Tensors, index: Tensor) -> Tensor:
        """The tiles at `index`, resized."""
        images, n = tensors["images"], self.factor
        (num, channels, height, width), (rows, columns) = images.shape, self._tile(images)
        padded = functional.pad(images, (0, n * columns - width, 0, n * rows - height), value=PADDING)
        tiles = padded.view(num, channels, n, rows, n, columns).permute(2, 4, 0, 1, 3, 5).reshape(n * n * num, channels, rows, columns)
        return resize(tiles.index_select(0, index), (height, width))

    def pack(self, images: Tensor) -> Tensor:
        """Each image becomes a tile, shrunk by taking the nearest pixels (as published)."""
        n, (total, channels, height, width) = self.factor, images.shape
        if n > min(height, width):
            raise UserError(f"codec.factor {n} is more than the {min(height, width)} pixels of an image's side; lower codec.factor.")
        rows, columns = self._tile(images)
        if (n - 1) * rows >= height or (n - 1) * columns >= width:
            raise UserError(
                f"codec.factor {n} cuts images of {height} x {width} pixels into tiles of {rows} x {columns}, the last of which hold nothing but "
                "padding; set codec.factor to a divisor of the side."
            )
        tiles = functional.interpolate(images, size=(rows, columns), mode="nearest").view(total // n**2, n, n, channels, rows, columns)
        return tiles.permute(0, 3, 1, 4, 2, 5).reshape(-1, channels, n * rows, n * columns)[:, :, :height, :width].contiguous()

    def project(self, tensors: Tensors) -> None:
        """Clamp to [0, 1]."""
        tensors["images"].clamp_(0, 1)

    def loader(self) -> str:
        """The same in one function."""
        return f"""def decode(tensors, n={self.factor}):
    images = tensors["images"]
    num, channels, height, width = images.shape
    rows, columns = -(-height // n), -(-width // n)
    padded = torch.nn.functional.pad(images, (0, n * columns - width, 0, n * rows - height), value={PADDING})
    tiles = padded.view(num, channels, n, rows, n, columns).permute(2, 4, 0, 1, 3, 5).reshape(-1, channels, rows, columns)
    examples = torch.nn.functional.interpolate(tiles, size=(height, width), mode="bilinear", align_corners=False)
    return examples, torch.arange(num).repeat(n * n)
"""


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear resizing of (B, C, h, w) to (B, C, *size): half-pixel centres, the edge repeated, no antialiasing.

    Two matrix products instead of functional.interpolate, whose backward has no deterministic kernel on CUDA.
    """
    rows, columns = (_weights(old, new, images) for old, new in zip(images.shape[2:], size, strict=True))
    with exact_matmul():
        return rows @ images @ columns.T


def _weights(old: int, new: int, like: Tensor) -> Tensor:
    """The matrix (new, old) of linear interpolation along one side."""
    at = ((torch.arange(new, device=like.device, dtype=like.dtype) + 0.5) * (old / new) - 0.5).clamp(0, old - 1)
    return (1 - (at[:, None] - torch.arange(old, device=like.device)).abs()).clamp(min=0)
