"""Bilinear resizing by two matrix products."""

import torch
from torch import Tensor

from ddengine.system.runtime import exact_matmul


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear resizing of (B, C, h, w) to (B, C, *size).

    Centres are half pixels, the edge is repeated, and nothing is antialiased. These are two matrix
    products instead of functional.interpolate, whose backward has no deterministic kernel on CUDA.
    """
    rows = _weights(images.shape[2], size[0], images)
    columns = _weights(images.shape[3], size[1], images)
    with exact_matmul():
        return rows @ images @ columns.T


def _weights(old: int, new: int, like: Tensor) -> Tensor:
    """The matrix (new, old) of linear interpolation along one side."""
    line = torch.arange(new, device=like.device, dtype=like.dtype)
    centres = (line + 0.5) * (old / new) - 0.5
    read_at = centres.clamp(0, old - 1).unsqueeze(1)
    old_line = torch.arange(old, device=like.device)
    distance = (read_at - old_line).abs()
    return (1 - distance).clamp(min=0)
