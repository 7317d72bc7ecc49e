"""Bilinear resizing by two matrix products."""

from torch import Tensor

from ddengine.sets.codec.packed import resized
from ddengine.system.runtime import exact_matmul


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear resizing of (B, C, h, w) to (B, C, *size).

    Centres are half pixels, the edge is repeated, and nothing is antialiased. These are two matrix
    products instead of functional.interpolate, whose backward has no deterministic kernel on CUDA.
    """
    with exact_matmul():
        made: Tensor = resized(images, size)
    return made
