"""The gradient of inner training: what `unroll` steps by.

And how a vector is pulled back through it. A faster way to compute either takes the place of
`ByAutograd` and changes nothing else.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

LossFn = Callable[..., Tensor]  # (theta (P,), *batch) -> a scalar
GradientFn = Callable[..., Tensor]  # (theta (P,), *batch) -> its gradient in theta (P,)


def eager_gradient(loss: LossFn) -> GradientFn:
    """(theta, *batch) -> d loss / d theta (P,), differentiable where gradients are enabled."""

    def gradient(theta: Tensor, *batch: Tensor) -> Tensor:
        differentiable = torch.is_grad_enabled()
        with torch.enable_grad():
            if not theta.requires_grad:
                theta = theta.detach().requires_grad_()
            value = loss(theta, *batch)
            (slope,) = torch.autograd.grad(value, theta, create_graph=differentiable)
        return slope

    return gradient


def compiled_gradient(loss: LossFn, **options: Any) -> GradientFn:
    """The same, compiled.

    Built on torch.func.grad, so that the outer backward is first order through the compiled code.

    Differentiating twice through a compiled *forward* is an error in PyTorch; compiling the whole
    inner gradient is not. Compile once and reuse: decoding and augmentation stay outside, because
    they change from step to step.
    """
    return torch.compile(torch.func.grad(loss), fullgraph=True, **options)


class Pullback(NamedTuple):
    """A vector r (P,) pulled back through the inner gradient g of one step."""

    product: Tensor  # <r, g>, a scalar
    curvature: Tensor | None  # d <r, g> / d theta = H r (P,); None where it was not asked for
    # d <r, g> / d each tensor of the batch; None of those that need no gradient
    batch: tuple[Tensor | None, ...]


class InnerGradient(Protocol):
    """The gradient g(theta, batch) of an inner loss in the parameters theta (P,)."""

    def gradient(self, theta: Tensor, *batch: Tensor) -> Tensor:
        """The gradient (P,), without a graph."""
        ...

    def differentiable(self, theta: Tensor, *batch: Tensor) -> Tensor:
        """The gradient (P,) with a graph to theta and to the batch."""
        ...

    def pullback(
        self, theta: Tensor, *batch: Tensor, r: Tensor, curvature: bool = True
    ) -> Pullback:
        """What r (P,) is pulled back to; H r only where `curvature` asks for it."""
        ...


class ByAutograd(InnerGradient):
    """An inner gradient that autograd differentiates: eager or compiled."""

    def __init__(self, gradient: GradientFn):
        self._gradient = gradient

    def gradient(self, theta: Tensor, *batch: Tensor) -> Tensor:
        """The gradient (P,), without a graph."""
        with torch.no_grad():
            return self._gradient(theta, *batch).detach()

    def differentiable(self, theta: Tensor, *batch: Tensor) -> Tensor:
        """The gradient (P,) with a graph to theta and to the batch."""
        return self._gradient(theta, *batch)

    def pullback(
        self, theta: Tensor, *batch: Tensor, r: Tensor, curvature: bool = True
    ) -> Pullback:
        """What r (P,) is pulled back to, by a backward pass through the gradient's own graph."""
        start = theta.detach().requires_grad_()
        leaves = []
        sought = []
        for tensor in batch:
            leaf = tensor.detach().requires_grad_(tensor.requires_grad)
            leaves.append(leaf)
            if leaf.requires_grad:
                sought.append(leaf)
        if curvature:
            sought = [start, *sought]
        with torch.enable_grad():
            g = self._gradient(start, *leaves)
        product = torch.dot(r, g.detach())
        if not sought:
            return Pullback(product, None, (None,) * len(batch))
        parts = iter(torch.autograd.grad(g, sought, r, allow_unused=True, materialize_grads=True))
        by_theta = next(parts) if curvature else None
        by_batch = tuple(next(parts) if leaf.requires_grad else None for leaf in leaves)
        return Pullback(product, by_theta, by_batch)


def with_weight_decay(loss: LossFn, weight_decay: float) -> LossFn:
    """The loss whose gradient is that of `loss` plus weight_decay theta, as torch.optim has it."""
    if not weight_decay:
        return loss

    def decayed(theta: Tensor, *batch: Tensor) -> Tensor:
        return loss(theta, *batch) + weight_decay / 2 * theta.square().sum()

    return decayed


def inner_gradient(loss: LossFn, compile: bool = False) -> InnerGradient:
    """The gradient of an inner loss, compiled where asked for."""
    if compile:
        return ByAutograd(compiled_gradient(loss))
    return ByAutograd(eager_gradient(loss))
