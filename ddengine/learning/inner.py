"""The gradient of inner training: what `unroll` steps by.

And how a vector is pulled back through it. A faster way to compute either takes the place of
`ByAutograd` and changes nothing else.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ddengine.learning.graphs import Compiler, Graphs

LossFn = Callable[..., Tensor]  # (theta (P,), *batch) -> a scalar
GradientFn = Callable[..., Tensor]  # (theta (P,), *batch) -> its gradient in theta (P,)
Slopes = tuple[Tensor, ...]  # gradients in theta, or in tensors of a batch


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


class Pullback(NamedTuple):
    """A vector r (P,) pulled back through the inner gradient g of one step."""

    product: Tensor  # <r, g>, a scalar
    curvature: Tensor | None  # d <r, g> / d theta = H r (P,); None where it was not asked for
    # d <r, g> / d each tensor of the batch; None of those that need no gradient
    batch: tuple[Tensor | None, ...]


class Kept(Protocol):
    """The inner gradient of one step, whose graph is kept until it was pulled back through."""

    @property
    def gradient(self) -> Tensor:
        """The gradient (P,), without a graph."""
        ...

    def pullback(self, r: Tensor, curvature: bool = True) -> Pullback:
        """As InnerGradient has it; once."""
        ...


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

    def kept(self, theta: Tensor, *batch: Tensor) -> Kept:
        """The gradient with what is needed to pull vectors back through it without a new pass."""
        return KeptGraph(self.differentiable, theta, batch)


class KeptGraph(Kept):
    """By the graph of autograd from theta and the batch, which are its leaves, to the gradient."""

    def __init__(self, gradient: GradientFn, theta: Tensor, batch: Sequence[Tensor]):
        self._theta = theta.detach().requires_grad_()
        self._leaves = [leaf.detach().requires_grad_(leaf.requires_grad) for leaf in batch]
        with torch.enable_grad():
            self._value = gradient(self._theta, *self._leaves)

    @property
    def gradient(self) -> Tensor:
        """The gradient (P,), without a graph."""
        return self._value.detach()

    def pullback(self, r: Tensor, curvature: bool = True) -> Pullback:
        """By a backward pass, which frees the graph."""
        sought = [leaf for leaf in self._leaves if leaf.requires_grad]
        if curvature:
            sought = [self._theta, *sought]
        product = torch.dot(r, self.gradient)
        if not sought:
            return Pullback(product, None, (None,) * len(self._leaves))
        parts = iter(
            torch.autograd.grad(self._value, sought, r, allow_unused=True, materialize_grads=True)
        )
        by_theta = next(parts) if curvature else None
        by_batch = tuple(next(parts) if leaf.requires_grad else None for leaf in self._leaves)
        return Pullback(product, by_theta, by_batch)


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
        return self.kept(theta, *batch).pullback(r, curvature)


class Compiled(InnerGradient):
    """An inner gradient that is one compiled graph, and whose pullback is another.

    With the loss l and s = <r, dl/dtheta>, the pullback is <r, g> = s, H r = ds/dtheta and ds/dx
    of each tensor x of the batch: the gradient of s, reverse over reverse. (Forwards over reverse
    takes a little longer, see benchmarks/unroll.py; and neither autocast nor our convolutions have
    forward derivatives.)
    """

    def __init__(self, loss: LossFn, compiler: Compiler | None = None):
        """`compiler` is given a graph of plain operations for each shape of batches."""
        self._loss = loss
        self._graphs = Graphs(compiler)
        self._eager = ByAutograd(eager_gradient(loss))

    def gradient(self, theta: Tensor, *batch: Tensor) -> Tensor:
        """The gradient (P,), without a graph."""
        return self._graphs("gradient", torch.func.grad(self._loss), theta, *batch)

    def differentiable(self, theta: Tensor, *batch: Tensor) -> Tensor:
        """The gradient (P,) with a graph to theta and to the batch: that of the eager gradient.

        A compiled graph that autograd differentiates computes its activations once more.
        """
        return self._eager.differentiable(theta, *batch)

    def pullback(
        self, theta: Tensor, *batch: Tensor, r: Tensor, curvature: bool = True
    ) -> Pullback:
        """What r (P,) is pulled back to, in one graph that nothing is kept of."""
        wanted = tuple(k for k, tensor in enumerate(batch) if tensor.requires_grad)
        slopes = _slopes_of_product(self._loss, wanted)
        product, (by_theta, *by_wanted) = self._graphs(wanted, slopes, theta, r, *batch)
        by_batch: list[Tensor | None] = [None] * len(batch)
        for k, slope in zip(wanted, by_wanted, strict=True):
            by_batch[k] = slope
        return Pullback(product, by_theta if curvature else None, tuple(by_batch))


def _slopes_of_product(
    loss: LossFn, wanted: tuple[int, ...]
) -> Callable[..., tuple[Tensor, Slopes]]:
    """(theta, r, *batch) -> <r, g>, and its gradients in theta and in the tensors `wanted`."""
    places = (0, *(k + 1 for k in wanted))

    def slopes(theta: Tensor, r: Tensor, *batch: Tensor) -> tuple[Tensor, Slopes]:
        def product(at: Tensor, *seen: Tensor) -> Tensor:
            return torch.dot(r, torch.func.grad(loss)(at, *seen))

        gradients, value = torch.func.grad_and_value(product, argnums=places)(theta, *batch)
        return value, gradients

    return slopes


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
        return Compiled(loss)
    return ByAutograd(eager_gradient(loss))
