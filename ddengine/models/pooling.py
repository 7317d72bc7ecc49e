"""Average pooling of 2x2 pixels, in fewer passes over memory on a CPU.

torch's own kernel takes 5.4 ms for 32 images of 128 channels and 32x32 pixels, on one thread of the
CPU where it was measured, and its way back 6.0; sums of rows, then of columns take 1.3 ms, and
repeated gradients 1.0. The sum of four numbers is in another order.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from ddengine.models.formula import Formula

TYPES = (torch.float32, torch.float64)  # sums of narrower ones would be rounded in between


class AveragePool(nn.AvgPool2d):
    """The mean of each 2x2 pixels (..., H, W) -> (..., H // 2, W // 2)."""

    def __init__(self) -> None:
        super().__init__(2, 2)

    def forward(self, images: Tensor) -> Tensor:
        """As nn.AvgPool2d; derivatives of any order and vmap go through."""
        even = images.shape[-1] % 2 == 0 and images.shape[-2] % 2 == 0
        ours = images.device.type == "cpu" and images.dtype in TYPES and even
        if not ours or torch.compiler.is_compiling():  # a compiler fuses torch's own
            return super().forward(images)
        mean: Tensor = _Mean.apply(images)  # type: ignore[no-untyped-call]
        return mean


class _Mean(Formula):
    """The mean of each 2x2 pixels, which is linear: its way back is `_Spread`."""

    @staticmethod
    def forward(images: Tensor) -> Tensor:
        rows = images[..., 0::2, :] + images[..., 1::2, :]
        return (rows[..., 0::2] + rows[..., 1::2]) * 0.25

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing is kept."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        spread: Tensor = _Spread.apply(grad)  # type: ignore[no-untyped-call]
        return spread


class _Spread(Formula):
    """A quarter of each value to 2x2 pixels; its way back is `_Mean`."""

    @staticmethod
    def forward(values: Tensor) -> Tensor:
        quarters = values * 0.25
        if get_proxy_mode() is not None:  # a compiler has no complex numbers
            return quarters.repeat_interleave(2, -1).repeat_interleave(2, -2)
        # pairs of equal numbers, written as complex ones, which takes a third of the time
        rows = torch.view_as_real(torch.complex(quarters, quarters)).flatten(-2)
        return torch.stack((rows, rows), -2).flatten(-3, -2)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing is kept."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        mean: Tensor = _Mean.apply(grad)  # type: ignore[no-untyped-call]
        return mean
