r"""Inner training as a differentiable function.

theta_{k+1} and the state of the update follow from theta_k and the inner gradient g_k (`updates`:
plain SGD, heavy ball, Adam).

How its gradient is computed is a part of its own:

* ``full`` keeps the graph of all T steps (MTT, Cazenavette et al., 2022).
* ``replay`` is the exact reverse pass with one step's graph alive: it stores theta_0..theta_T, and
  on the way back builds the graph of one step at a time from the stored theta_k. Graph memory does
  not grow with T. Updates that are not linear in g_k store it and their state too.
* ``detached`` is the same pass without the derivative of g_k in theta_k (TESLA, Cui et al., 2023,
  eq. 4-6). It is biased, although its paper calls it exact: the error grows with the inner step
  size.

The reverse pass, with p the gradient of the result in theta_{k+1}, starting from p = 0: add to p
what arrives at theta_{k+1} from outside; the update says which r its g_k is pulled back with (heavy
ball: r = p + momentum r); with c = <r, g_k(theta_k)>: d inputs -= lr dc/dinputs, d lr -= c,
p -= lr dc/dtheta_k (not for ``detached``).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ddengine.learning.inner import InnerGradient
from ddengine.learning.updates import Sgd, State, Update
from ddengine.types import Backprop

Inputs = Mapping[str, Tensor]
BatchFn = Callable[[Inputs, int], tuple[Tensor, ...]]


def unroll(
    gradient: InnerGradient,
    batch: BatchFn,
    theta: Tensor,
    inputs: Inputs,
    num_steps: int,
    *,
    lr: Tensor | float,
    update: Update = Sgd(),
    keep: Sequence[int] = (),
    backprop: Backprop = "replay",
) -> Tensor:
    """Parameters after the steps in `keep`, then after the last of `num_steps` of inner training.

    Args:
        gradient: the inner gradient, from `inner.inner_gradient`.
        batch: (inputs, k) -> the tensors of inner step k (decode, augment with draw k). Called
            again for the same k by `replay` and `detached`, so it must repeat itself.
        theta: start (P,).
        inputs: the tensors that gradients reach, by name; a tensor that `gradient` or `batch`
            capture instead is a constant.
        num_steps: T >= 1.
        lr: inner step size, a scalar tensor when it is learned.
        update: how parameters move by their gradient.
        keep: numbers of finished steps, ascending, each in 1..T; the parameters after them are
            returned too.
        backprop: "full" | "replay" | "detached", see the module.

    Returns:
        (len(keep) + 1, P), differentiable once in `theta`, `lr` and `inputs` ("full": as often as
        wanted).

    Raises:
        ValueError: for an unknown policy, num_steps < 1 or `keep` out of order or range.
    """
    if backprop not in ("full", "replay", "detached"):
        raise ValueError(f"backprop must be full, replay or detached, got {backprop!r}")
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    if any(not 1 <= k <= num_steps for k in keep) or list(keep) != sorted(set(keep)):
        raise ValueError(f"keep must be ascending steps within 1..{num_steps}, got {list(keep)}")
    lr = torch.as_tensor(lr, dtype=theta.dtype, device=theta.device)
    out = (*keep, num_steps)
    if backprop != "full":
        names = tuple(inputs)
        call = _Call(gradient, batch, update, names, num_steps, out, backprop == "replay")
        return _Replay.apply(call, theta, lr, *inputs.values())  # type: ignore[no-any-return]
    state = update.start(theta)
    kept: list[Tensor] = []
    for k in range(num_steps):
        g = gradient.differentiable(theta, *batch(inputs, k))
        theta, state = update.step(theta, g, state, lr, k)
        kept += [theta] * out.count(k + 1)
    return torch.stack(kept)


@dataclass(frozen=True)
class _Call:
    """What one `_Replay` needs beside its tensors."""

    gradient: InnerGradient
    batch: BatchFn
    update: Update
    names: tuple[str, ...]  # of the inputs
    num_steps: int
    out: tuple[int, ...]  # steps after which the parameters are returned, ascending
    exact: bool  # whether gradients flow through the inner gradient to earlier parameters


class _Replay(torch.autograd.Function):
    """`unroll` with one step's graph alive at a time."""

    @staticmethod
    def forward(ctx: Any, call: _Call, theta: Tensor, lr: Tensor, *values: Tensor) -> Tensor:
        inputs = dict(zip(call.names, values, strict=True))
        update = call.update
        thetas, state = [theta.detach()], update.start(theta.detach())
        grads: list[Tensor | None] = []
        states: list[State] = []
        for k in range(call.num_steps):
            g = call.gradient.gradient(thetas[-1], *call.batch(inputs, k))
            grads.append(None if update.linear else g)
            states.append(() if update.linear else state)
            moved, state = update.step(thetas[-1], g, state, lr, k)
            thetas.append(moved)
        ctx.call = call
        # not inputs or outputs of this function, so holding them makes no reference cycle
        ctx.thetas, ctx.grads, ctx.states = thetas, grads, states
        ctx.save_for_backward(lr, *values)
        return torch.stack([thetas[k] for k in call.out])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        call: _Call = ctx.call
        lr, *values = ctx.saved_tensors
        leaves = [value.detach() for value in values]
        for leaf, wanted in zip(leaves, ctx.needs_input_grad[3:], strict=True):
            leaf.requires_grad_(wanted)
        inputs = dict(zip(call.names, leaves, strict=True))
        learned = [leaf for leaf in leaves if leaf.requires_grad]
        grads = [torch.zeros_like(leaf) for leaf in learned]
        grad_lr = torch.zeros_like(lr)
        p = torch.zeros_like(ctx.thetas[0])
        adjoint = call.update.before_last(p)
        for k in reversed(range(call.num_steps)):
            p = _with_arriving(p, grad_out, call.out, k + 1)
            step = call.update.back(p, adjoint, lr, k, ctx.grads[k], ctx.states[k])
            p, adjoint = step.theta, step.state
            with torch.enable_grad():
                batch = call.batch(inputs, k)
            pulled = call.gradient.pullback(ctx.thetas[k], *batch, r=step.r, curvature=call.exact)
            grad_lr = grad_lr - pulled.product if step.lr is None else grad_lr + step.lr
            if pulled.curvature is not None:
                p = p + step.scale * pulled.curvature
            for total, part in zip(grads, _of_inputs(batch, pulled.batch, learned), strict=True):
                total.add_(step.scale * part)
        filled = iter(grads)
        of_inputs = [next(filled) if leaf.requires_grad else None for leaf in leaves]
        return (None, p, grad_lr, *of_inputs)


def _with_arriving(p: Tensor, grad_out: Tensor, out: Sequence[int], step: int) -> Tensor:
    """`p` and what arrives from outside at the parameters after `step` steps."""
    for row, finished in zip(grad_out, out, strict=True):
        if finished == step:
            p = p + row
    return p


def _of_inputs(
    batch: Sequence[Tensor], gradients: Sequence[Tensor | None], learned: Sequence[Tensor]
) -> Sequence[Tensor]:
    """The gradients in the learned inputs, of those in the tensors of a batch made of them."""
    reached = [(t, g) for t, g in zip(batch, gradients, strict=True) if g is not None]
    if not reached or not learned:
        return [torch.zeros_like(leaf) for leaf in learned]
    tensors, grads = zip(*reached, strict=True)
    return torch.autograd.grad(tensors, learned, grads, allow_unused=True, materialize_grads=True)
