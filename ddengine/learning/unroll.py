r"""Inner training as a differentiable function: theta_{k+1} = theta_k - lr b_k with b_k = momentum
b_{k-1} + g_k (heavy ball, b_0 = g_0).

How its gradient is computed is a part of its own:

* ``full`` keeps the graph of all T steps (MTT, Cazenavette et al., 2022).
* ``replay`` is the exact reverse pass with one step's graph alive: it stores theta_0..theta_T, and
  on the way back builds the graph of one step at a time from the stored theta_k. Graph memory does
  not grow with T.
* ``detached`` is the same pass without the derivative of g_k in theta_k (TESLA, Cui et al., 2023,
  eq. 4-6). It is biased, although its paper calls it exact: the error grows with the inner step
  size.

The reverse pass, with p the gradient of the result in theta_{k+1}, starting from p = r = 0: add to
p what arrives at theta_{k+1} from outside; r = p + momentum r; with c = <r, g_k(theta_k)>: d inputs
-= lr dc/dinputs, d lr -= c, p -= lr dc/dtheta_k (not for ``detached``).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ddengine.types import Backprop

Inputs = Mapping[str, Tensor]
BatchFn = Callable[[Inputs, int], tuple[Tensor, ...]]
LossFn = Callable[..., Tensor]
GradientFn = Callable[..., Tensor]


def eager_gradient(loss: LossFn) -> GradientFn:
    """(theta, *batch) -> d loss / d theta (P,), itself differentiable where gradients are enabled."""

    def gradient(theta: Tensor, *batch: Tensor) -> Tensor:
        differentiable = torch.is_grad_enabled()
        with torch.enable_grad():
            if not theta.requires_grad:
                theta = theta.detach().requires_grad_()
            return torch.autograd.grad(loss(theta, *batch), theta, create_graph=differentiable)[0]

    return gradient


def compiled_gradient(loss: LossFn, **options: Any) -> GradientFn:
    """The same, compiled.

    Built on torch.func.grad, so that the outer backward is first order through the compiled code.

    Differentiating twice through a compiled *forward* is an error in PyTorch; compiling the whole
    inner gradient is not. Compile once and reuse: decoding and augmentation stay outside, because
    they change from step to step.
    """
    return torch.compile(torch.func.grad(loss), fullgraph=True, **options)


def unroll(
    gradient: GradientFn,
    batch: BatchFn,
    theta: Tensor,
    inputs: Inputs,
    num_steps: int,
    *,
    lr: Tensor | float,
    momentum: float = 0.0,
    keep: Sequence[int] = (),
    backprop: Backprop = "replay",
) -> Tensor:
    """Parameters after the steps in `keep`, then after the last of `num_steps` of inner training.

    Args:
        gradient: (theta, *batch) -> the inner gradient (P,); from `eager_gradient` or
            `compiled_gradient`.
        batch: (inputs, k) -> the tensors of inner step k (decode, augment with draw k). Called
            again for the same k by `replay` and `detached`, so it must repeat itself.
        theta: start (P,).
        inputs: the tensors that gradients reach, by name; a tensor that `gradient` or `batch`
            capture instead is a constant.
        num_steps: T >= 1.
        lr: inner step size, a scalar tensor when it is learned.
        momentum: heavy-ball coefficient, 0 <= momentum < 1.
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
        call = _Call(gradient, batch, names, num_steps, momentum, out, backprop == "replay")
        return _Replay.apply(call, theta, lr, *inputs.values())  # type: ignore[no-any-return]
    velocity, kept = None, []
    for k in range(num_steps):
        g = gradient(theta, *batch(inputs, k))
        velocity = g if velocity is None else momentum * velocity + g
        theta = theta - lr * velocity
        kept += [theta] * (out.count(k + 1))
    return torch.stack(kept)


class _Call:
    """What one `_Replay` needs beside its tensors."""

    def __init__(
        self,
        gradient: GradientFn,
        batch: BatchFn,
        names: tuple[str, ...],
        num_steps: int,
        momentum: float,
        out: tuple[int, ...],
        exact: bool,
    ):
        self.gradient, self.batch, self.names, self.num_steps = gradient, batch, names, num_steps
        self.momentum, self.out, self.exact = momentum, out, exact


class _Replay(torch.autograd.Function):
    """`unroll` with one step's graph alive at a time."""

    @staticmethod
    def forward(ctx: Any, call: _Call, theta: Tensor, lr: Tensor, *values: Tensor) -> Tensor:
        inputs = dict(zip(call.names, values, strict=True))
        thetas, velocity = [theta.detach()], None
        for k in range(call.num_steps):
            g = call.gradient(thetas[-1], *call.batch(inputs, k)).detach()
            velocity = g if velocity is None or call.momentum == 0 else call.momentum * velocity + g
            thetas.append(thetas[-1] - lr * velocity)
        ctx.call = call
        # not inputs or outputs of this function, so holding them makes no reference cycle
        ctx.thetas = thetas
        ctx.save_for_backward(lr, *values)
        return torch.stack([thetas[k] for k in call.out])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        call: _Call = ctx.call
        lr, *values = ctx.saved_tensors
        wanted = ctx.needs_input_grad[3:]
        leaves = [v.detach().requires_grad_(w) for v, w in zip(values, wanted, strict=True)]
        inputs = dict(zip(call.names, leaves, strict=True))
        learned = [leaf for leaf in leaves if leaf.requires_grad]
        grads = [torch.zeros_like(leaf) for leaf in learned]
        grad_lr = torch.zeros_like(lr)
        p = r = torch.zeros_like(ctx.thetas[0])
        for k in reversed(range(call.num_steps)):
            if k + 1 in call.out:
                p = p + sum(g for g, o in zip(grad_out, call.out, strict=True) if o == k + 1)
            r = p + call.momentum * r
            with torch.enable_grad():
                theta = ctx.thetas[k].detach().requires_grad_()
                g = call.gradient(theta, *call.batch(inputs, k))
                grad_lr -= torch.dot(r, g.detach())
                sought = ([theta] if call.exact else []) + learned
                parts = (
                    list(
                        torch.autograd.grad(g, sought, r, allow_unused=True, materialize_grads=True)
                    )
                    if sought
                    else []
                )
            if call.exact:
                p = p - lr * parts.pop(0)
            for total, part in zip(grads, parts, strict=True):
                total.sub_(lr * part)
        filled = iter(grads)
        return (None, p, grad_lr, *(next(filled) if w else None for w in wanted))
