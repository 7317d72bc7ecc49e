"""Stored pixels as numbers in [0, 1] and as bytes."""

import torch
from torch import Tensor


def as_pixels(images: Tensor) -> Tensor:
    """Stored pixels as values in [0, 1], also where they are bytes."""
    return images.float() / 255 if images.dtype == torch.uint8 else images


def as_bytes(images: Tensor) -> Tensor:
    """Pixels, clamped to [0, 1], as bytes, rounded as torchvision.utils.save_image does (halves
    up); bytes as they are.
    """
    if images.dtype == torch.uint8:
        return images
    return images.detach().float().clamp(0, 1).mul(255).add_(0.5).clamp_(0, 255).to(torch.uint8)
