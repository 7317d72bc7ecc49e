"""Images that lie in memory, brought to one size."""

import torch
from PIL import ImageColor
from torch import Tensor

from ddengine.data.preprocess import pieces
from ddengine.recipe import DataConfig


def resize(pixels: Tensor, config: DataConfig) -> Tensor:
    """Images (B, C, H, W) uint8 at data.size, as data.fit says.

    Readers of arrays hand out images as they are stored; readers of files have resized already.
    """
    if config.size is None or tuple(pixels.shape[2:]) == config.size:
        return pixels
    resized = []
    for piece in pieces(pixels):
        resized.append(_resized(piece, config.size, config))
    return torch.cat(resized)


def with_channels(pixels: Tensor, channels: int) -> Tensor:
    """Images (B, C, H, W) uint8 in so many channels: grey ones are repeated, others averaged."""
    if pixels.shape[1] == channels:
        return pixels
    if pixels.shape[1] > 1:
        pixels = torch.cat(list(map(_grey, pieces(pixels))))
    return pixels.expand(-1, channels, -1, -1)


def _grey(images: Tensor) -> Tensor:
    """Images (B, C, H, W) uint8 as (B, 1, H, W), the mean of their channels."""
    return images.float().mean(1, keepdim=True).round().to(torch.uint8)


def _resized(
    pixels: Tensor,
    size: tuple[int, int],
    config: DataConfig,
) -> Tensor:
    """The same of a few images, which are not of `size` yet."""
    if config.fit == "crop":
        return _interpolated(_middle(pixels, size), size)
    if config.fit == "pad":
        return _padded(pixels, size, config.background)
    return _interpolated(pixels, size)


def _interpolated(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """Images stretched or squashed to (height, width)."""
    resized = torch.nn.functional.interpolate(
        pixels.float(), size, mode="bilinear", antialias=True, align_corners=False
    )
    return resized.round().clamp(0, 255).to(torch.uint8)


def _middle(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """The largest part in the middle that has the shape of (height, width)."""
    height, width = pixels.shape[2:]
    wanted_height, wanted_width = size
    zoom = max(wanted_height / height, wanted_width / width)
    rows = min(height, round(wanted_height / zoom))
    columns = min(width, round(wanted_width / zoom))
    top = (height - rows) // 2
    left = (width - columns) // 2
    return pixels[:, :, top : top + rows, left : left + columns]


def _padded(
    pixels: Tensor,
    size: tuple[int, int],
    background: str,
) -> Tensor:
    """Images within (height, width), with the colour `background` around them."""
    channels, height, width = pixels.shape[1:]
    full_height, full_width = size
    zoom = min(full_height / height, full_width / width)
    rows = max(1, round(height * zoom))
    columns = max(1, round(width * zoom))
    resized = _interpolated(pixels, (rows, columns))
    if (rows, columns) == size:
        return resized
    colour = ImageColor.getrgb(background)[:3]
    ground = torch.tensor(colour, dtype=torch.uint8)
    if channels == 1:
        grey = ground.float().mean().round()
        ground = grey.to(torch.uint8).view(1)
    padded = ground.view(1, -1, 1, 1).repeat(len(pixels), 1, full_height, full_width)
    top = (full_height - rows) // 2
    left = (full_width - columns) // 2
    padded[:, :, top : top + rows, left : left + columns] = resized
    return padded
