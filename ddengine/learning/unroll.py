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
    asked = list(keep)
    in_range = all(1 <= k <= num_steps for k in asked)
    if not in_range or asked != sorted(set(asked)):
        raise ValueError(f"keep must be ascending steps within 1..{num_steps}, got {asked}")
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
        now = theta.detach()
        state = update.start(now)
        thetas = [now]
        grads: list[Tensor | None] = []
        states: list[State] = []
        for k in range(call.num_steps):
            batch = call.batch(inputs, k)
            g = call.gradient.gradient(now, *batch)
            if update.linear:
                grads.append(None)
                states.append(())
            else:
                grads.append(g)
                states.append(state)
            now, state = update.step(now, g, state, lr, k)
            thetas.append(now)
        ctx.call = call
        # not inputs or outputs of this function, so holding them makes no reference cycle
        ctx.thetas = thetas
        ctx.grads = grads
        ctx.states = states
        ctx.save_for_backward(lr, *values)
        return torch.stack([thetas[k] for k in call.out])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        call: _Call = ctx.call
        lr, *values = ctx.saved_tensors
        leaves = _leaves(values, ctx.needs_input_grad[3:])
        inputs = dict(zip(call.names, leaves, strict=True))
        learned = [leaf for leaf in leaves if leaf.requires_grad]
        totals = [torch.zeros_like(leaf) for leaf in learned]
        grad_lr = torch.zeros_like(lr)
        p = torch.zeros_like(ctx.thetas[0])
        adjoint = call.update.before_last(p)
        for k in reversed(range(call.num_steps)):
            p = _with_arriving(p, grad_out, call.out, k + 1)
            step = call.update.back(p, adjoint, lr, k, ctx.grads[k], ctx.states[k])
            p = step.theta
            adjoint = step.state
            with torch.enable_grad():
                batch = call.batch(inputs, k)
            theta = ctx.thetas[k]
            pulled = call.gradient.pullback(theta, *batch, r=step.r, curvature=call.exact)
            if step.lr is None:
                grad_lr = grad_lr - pulled.product
            else:
                grad_lr = grad_lr + step.lr
            if pulled.curvature is not None:
                p = p + step.scale * pulled.curvature
            of_inputs = _of_inputs(batch, pulled.batch, learned)
            _add(totals, of_inputs, step.scale)
        return (None, p, grad_lr, *_in_place(leaves, totals))


def _leaves(values: Sequence[Tensor], wanted: Sequence[bool]) -> list[Tensor]:
    """The inputs as leaves of the graphs of single steps; gradients flow into those wanted."""
    leaves = []
    for value, learned in zip(values, wanted, strict=True):
        leaves.append(value.detach().requires_grad_(learned))
    return leaves


def _add(totals: Sequence[Tensor], parts: Sequence[Tensor], scale: Tensor | float) -> None:
    """Add `scale` times each part to its total."""
    for total, part in zip(totals, parts, strict=True):
        total.add_(scale * part)


def _in_place(leaves: Sequence[Tensor], grads: Sequence[Tensor]) -> list[Tensor | None]:
    """The gradients of the learned inputs in the places of these; None for the other inputs."""
    of_learned = iter(grads)
    of_inputs: list[Tensor | None] = []
    for leaf in leaves:
        of_inputs.append(next(of_learned) if leaf.requires_grad else None)
    return of_inputs


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
    reached = []
    arriving = []
    for tensor, gradient in zip(batch, gradients, strict=True):
        if gradient is not None:
            reached.append(tensor)
            arriving.append(gradient)
    if not reached or not learned:
        return [torch.zeros_like(leaf) for leaf in learned]
    return torch.autograd.grad(
        reached, learned, arriving, allow_unused=True, materialize_grads=True
    )
