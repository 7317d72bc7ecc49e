"""Stored pixels as numbers in [0, 1] and as bytes."""

from collections.abc import Mapping

import torch
from torch import Tensor

# of a stored value; pixels are at most 1, and networks see at most some thousands of what they are
# trained on
LARGEST = 1e6


def as_pixels(images: Tensor) -> Tensor:
    """Stored pixels as values in [0, 1], also where they are bytes."""
    return images.float() / 255 if images.dtype == torch.uint8 else images


def as_bytes(images: Tensor) -> Tensor:
    """Pixels, clamped to [0, 1], as bytes; bytes as they are.

    Rounding is that of torchvision.utils.save_image (halves up).
    """
    if images.dtype == torch.uint8:
        return images
    levels = images.detach().float().clamp(0, 1).mul(255)
    return levels.add_(0.5).clamp_(0, 255).to(torch.uint8)


def too_large(images: Tensor) -> str | None:
    """What is wrong with stored images that hold values which no image has; None for others."""
    if not images.is_floating_point() or not images.numel():
        return None
    largest = float(images.abs().max())
    if largest <= LARGEST:
        return None
    return f"holds values up to {largest:.3g} in 'images', which no image has"


def other_shape(
    tensors: Mapping[str, Tensor], expected: Mapping[str, tuple[int | None, ...]]
) -> str | None:
    """What is wrong with stored tensors of other shapes than expected; None where none is.

    A size of None may be any. A name that is not stored is passed over.
    """
    for name, sizes in expected.items():
        if name not in tensors:
            continue
        shape = tuple(tensors[name].shape)
        fits = [size in (None, given) for size, given in zip(sizes, shape, strict=False)]
        if len(shape) != len(sizes) or not all(fits):
            said = " x ".join("any" if size is None else str(size) for size in sizes)
            return f"holds {name!r} of shape {shape}, and its codec says {said}"
    return None
