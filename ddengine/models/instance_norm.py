"""Instance normalisation whose second derivatives take fewer passes over memory.

Where a graph of the first derivatives is kept, torch writes these out in operations of one pass
each, keeps what all of them need, and differentiates each. Here the first derivatives are torch's
own kernel, and the second ones are a formula. With

    y = w x_hat + b,  x_hat = (x - mean(x)) s,  s = 1 / sqrt(var(x) + eps)

over the n pixels of a channel, and g a gradient of y, the first derivatives are

    dx = w s (g - mean(g) - x_hat mean(g x_hat)),  dw = sum(g x_hat),  db = sum(g)

summed over images, and u, v_w and v_b what flows back into dx, dw and db. All that is returned to g
and to x is a sum of g, u and x, each times a number for each image and channel, and a number.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ddengine.models.formula import Formula

TYPES = (torch.float32, torch.float64)
Three = tuple[Tensor, Tensor, Tensor]


class InstanceNorm(nn.GroupNorm):
    """nn.GroupNorm of a group for each channel, of images (B, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels)

    def forward(self, images: Tensor) -> Tensor:
        """As nn.GroupNorm; derivatives of any order and vmap go through."""
        ours = images.dtype in TYPES and images.dtype == self.weight.dtype
        # a meta tensor has a shape alone, and no autocast
        narrow = not images.is_meta and torch.is_autocast_enabled(images.device.type)
        if not ours or narrow or torch.compiler.is_compiling():  # a compiler fuses torch's own
            return super().forward(images)
        made: Three = _Normed.apply(  # type: ignore[no-untyped-call]
            images.contiguous(), self.weight, self.bias, self.eps
        )
        return made[0]


class _Normed(Formula):
    """(y, means (B, C), s (B, C)) of x (B, C, H, W), w (C,), b (C,) and eps."""

    @staticmethod
    def forward(x: Tensor, w: Tensor, b: Tensor, eps: float) -> Three:
        return torch.native_group_norm(x, w, b, *_sizes(x), eps)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """What the first derivatives need is kept."""
        x, w, _, ctx.eps = inputs
        _, means, s = output
        ctx.mark_non_differentiable(means, s)
        ctx.save_for_backward(x, w, means, s)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, w, means, s = ctx.saved_tensors
        slopes: Three = _Slopes.apply(  # type: ignore[no-untyped-call]
            grads[0].contiguous(), x, w, means, s, ctx.eps
        )
        return slopes[0], slopes[1], slopes[2], None


class _Slopes(Formula):
    """(dx, dw, db) of g, x, w, means, s and eps, of which means and s follow from x."""

    @staticmethod
    def forward(g: Tensor, x: Tensor, w: Tensor, means: Tensor, s: Tensor, eps: float) -> Three:
        return torch.ops.aten.native_group_norm_backward(
            g, x, means, s, w, *_sizes(x), [True, True, True]
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """What the second derivatives need is kept."""
        *tensors, ctx.eps = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, u: Tensor, v_w: Tensor, v_b: Tensor) -> tuple[Tensor | None, ...]:
        g, x, w, means, s = ctx.saved_tensors
        if torch.is_grad_enabled():  # means and s are to be differentiated too
            means = x.mean((2, 3))
            s = (x.var((2, 3), correction=0) + ctx.eps).rsqrt()
        by_g, by_x, by_w = _second(g, x, w, means, s, u, v_w, v_b)
        return by_g, by_x, by_w, None, None, None


def _second(
    g: Tensor, x: Tensor, w: Tensor, means: Tensor, s: Tensor, u: Tensor, v_w: Tensor, v_b: Tensor
) -> Three:
    """The gradients in g, x and w of <u, dx> + <v_w, dw> + <v_b, db>."""
    n = x.shape[2] * x.shape[3]
    mean_u, mean_g = u.mean((2, 3)), g.mean((2, 3))
    u_hat = ((u * x).mean((2, 3)) - mean_u * means) * s  # the mean of u x_hat
    g_hat = ((g * x).mean((2, 3)) - mean_g * means) * s
    # <u, dx> = w s `along`
    along = n * ((u * g).mean((2, 3)) - mean_u * mean_g - u_hat * g_hat)
    scale = w * s
    of_g = v_w - scale * u_hat  # of g in the gradient in x_hat, where -scale g_hat is that of u
    by_g = _sum(v_b - scale * mean_u - of_g * s * means, (scale, u), (of_g * s, x))
    to_x_hat = s * (v_w * g_hat - 2 * scale * u_hat * g_hat + scale * along / n)
    without = to_x_hat * s * means - s * (of_g * mean_g - scale * g_hat * mean_u)
    by_x = _sum(without, (s * of_g, g), (-to_x_hat * s, x), (-s * scale * g_hat, u))
    return by_g, by_x, (s * along).sum(0)


def _sum(without: Tensor, *parts: tuple[Tensor, Tensor]) -> Tensor:
    """The sum of `without` (B, C) and of tensors (B, C, H, W), each times numbers (B, C)."""
    (first, of_first), *rest = parts
    total = of_first * first[..., None, None]
    for number, tensor in rest:
        total = torch.addcmul(total, tensor, number[..., None, None])
    return total + without[..., None, None]  # last, because torch adds to full tensors faster


def _sizes(x: Tensor) -> tuple[int, int, int, int]:
    """Images, channels, pixels of a channel, and groups."""
    images, channels, height, width = x.shape
    return images, channels, height * width, channels
