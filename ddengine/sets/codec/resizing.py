"""Bilinear resizing by two matrix products."""

import torch
from torch import Tensor

from ddengine.system.runtime import exact_matmul


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear resizing of (B, C, h, w) to (B, C, *size): half-pixel centres, the edge repeated, no
    antialiasing.

    Two matrix products instead of functional.interpolate, whose backward has no deterministic
    kernel on CUDA.
    """
    rows, columns = (
        _weights(old, new, images) for old, new in zip(images.shape[2:], size, strict=True)
    )
    with exact_matmul():
        return rows @ images @ columns.T


def _weights(old: int, new: int, like: Tensor) -> Tensor:
    """The matrix (new, old) of linear interpolation along one side."""
    at = (
        (torch.arange(new, device=like.device, dtype=like.dtype) + 0.5) * (old / new) - 0.5
    ).clamp(0, old - 1)
    return (1 - (at[:, None] - torch.arange(old, device=like.device)).abs()).clamp(min=0)
