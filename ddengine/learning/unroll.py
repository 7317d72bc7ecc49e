r"""Inner training as a differentiable function.

theta_{k+1} and the state of the update follow from theta_k and the inner gradient g_k (`updates`:
plain SGD, heavy ball, Adam). `train` makes steps without a graph, and `unroll` may go on from them.

How its gradient is computed is a part of its own:

* ``full`` keeps the graph of all T steps (MTT, Cazenavette et al., 2022).
* ``replay`` is the exact reverse pass with one step's graph alive: it stores theta_0..theta_T, and
  on the way back builds the graph of one step at a time from the stored theta_k. Graph memory does
  not grow with T. Updates that are not linear in g_k store it and their state too. Where there is
  memory, the graphs of the last steps are kept, and none of these is built again: they are the
  first that the way back needs, and each is freed there.
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
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ddengine.learning.inner import InnerGradient, Kept
from ddengine.learning.updates import Back, Sgd, State, Update
from ddengine.types import Backprop

Inputs = Mapping[str, Tensor]
BatchFn = Callable[[Inputs, int], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Trained:
    """How far training has come."""

    theta: Tensor  # (P,)
    state: State  # of the update
    num_steps: int  # made so far


def unroll(  # long: arguments, and what they mean
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
    kept_graphs: int = 0,
    before: "Trained | None" = None,
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
        lr: inner step size, a scalar tensor when it is learned; or one of each step (T,).
        update: how parameters move by their gradient.
        keep: numbers of finished steps, ascending, each in 1..T; the parameters after them are
            returned too.
        backprop: "full" | "replay" | "detached", see the module.
        kept_graphs: of so many steps, the last, "replay" and "detached" keep the graphs.
        before: training of the same update that these steps go on from; its state is a constant,
            and `theta` takes the place of its parameters. None: this is where training starts.

    Returns:
        (len(keep) + 1, P), differentiable once in `theta`, `lr` and `inputs` ("full": as often as
        wanted).

    Raises:
        ValueError: for an unknown policy, num_steps < 1, `keep` out of order or range, or rates of
            another number of steps.
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
    if lr.shape not in ((), (num_steps,)):
        raise ValueError(f"lr must be one number or {num_steps}, got shape {tuple(lr.shape)}")
    out = (*keep, num_steps)
    if before is None:
        before = Trained(theta.detach(), update.start(theta.detach()), 0)
    if backprop != "full":
        names = tuple(inputs)
        exact = backprop == "replay"
        first_kept = num_steps - kept_graphs if torch.is_grad_enabled() else num_steps
        call = _Call(gradient, batch, update, names, num_steps, out, exact, before, first_kept)
        return _Replay.apply(call, theta, lr, *inputs.values())  # type: ignore[no-any-return]
    rates = _rates(lr, num_steps)
    state = before.state
    kept: list[Tensor] = []
    for k in range(num_steps):
        g = gradient.differentiable(theta, *batch(inputs, k))
        theta, state = update.step(theta, g, state, rates[k], before.num_steps + k)
        kept += [theta] * out.count(k + 1)
    return torch.stack(kept)


@torch.no_grad()
def train(
    gradient: InnerGradient,
    batch: BatchFn,
    theta: Tensor,
    inputs: Inputs,
    num_steps: int,
    *,
    lr: Tensor | float,
    update: Update = Sgd(),
    watch: Callable[[Tensor], None] | None = None,
) -> Trained:
    """The training of `unroll` without any graph; num_steps may be 0.

    `watch` is given the gradient (P,) of every step.
    """
    rates = _rates(torch.as_tensor(lr, dtype=theta.dtype, device=theta.device), num_steps)
    now = theta.detach()
    state = update.start(now)
    for k in range(num_steps):
        g = gradient.gradient(now, *batch(inputs, k))
        if watch is not None:
            watch(g)
        now, state = update.step(now, g, state, rates[k], k)
    return Trained(now, state, num_steps)


def rates_of(lr: Tensor, first: int, num_steps: int) -> Tensor:
    """The step sizes of so many steps from `first` on: one for all, or one of each."""
    return lr if lr.dim() == 0 else lr[first : first + num_steps]


def _rates(lr: Tensor, num_steps: int) -> Sequence[Tensor]:
    """The step size of each step."""
    if lr.dim() == 0:
        return [lr] * num_steps
    return lr.unbind()


@dataclass(frozen=True)
class _Step:
    """A step whose graph is kept: the graph from the inputs to its batch, and what follows it."""

    batch: tuple[Tensor, ...]
    gradient: Kept


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
    before: Trained  # where training stood before these steps
    first_kept: int  # the step from which on graphs are kept

    def differentiable_batch(self, leaves: Sequence[Tensor], k: int) -> tuple[Tensor, ...]:
        """The tensors of step k with a graph to the inputs."""
        with torch.enable_grad():
            return self.batch(dict(zip(self.names, leaves, strict=True)), k)

    def kept(self, theta: Tensor, leaves: Sequence[Tensor], k: int) -> _Step:
        """Step k, whose graph is kept."""
        batch = self.differentiable_batch(leaves, k)
        return _Step(batch, self.gradient.kept(theta, *batch))

    def by_formula(self, lr: Tensor) -> bool:
        """Whether the update's own way back is taken, which asks for one step size in all steps."""
        return self.update.linear and lr.dim() == 0


class _Replay(torch.autograd.Function):
    """`unroll` with one step's graph alive at a time."""

    @staticmethod
    def forward(ctx: Any, call: _Call, theta: Tensor, lr: Tensor, *values: Tensor) -> Tensor:
        inputs = dict(zip(call.names, values, strict=True))
        update = call.update
        rates = _rates(lr, call.num_steps)
        now = theta.detach()
        state = call.before.state
        thetas = [now]
        grads: list[Tensor | None] = []
        states: list[State] = []
        kept: dict[int, _Step] = {}
        leaves = _leaves(values, ctx.needs_input_grad[3:])
        for k in range(call.num_steps):
            if k < call.first_kept:
                g = call.gradient.gradient(now, *call.batch(inputs, k))
            else:
                kept[k] = call.kept(now, leaves, k)
                g = kept[k].gradient.gradient
            if call.by_formula(lr):
                grads.append(None)
                states.append(() if k else state)
            else:
                grads.append(g)
                states.append(state)
            now, state = update.step(now, g, state, rates[k], call.before.num_steps + k)
            thetas.append(now)
        ctx.call = call
        # not inputs or outputs of this function, so holding them makes no reference cycle
        ctx.thetas = thetas
        ctx.grads = grads
        ctx.states = states
        ctx.leaves = leaves
        ctx.kept = kept
        ctx.save_for_backward(lr, *values)
        return torch.stack([thetas[k] for k in call.out])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        call: _Call = ctx.call
        lr, *_ = ctx.saved_tensors  # looks whether anything was changed in place
        rates = _rates(lr, call.num_steps)
        leaves = ctx.leaves
        learned = [leaf for leaf in leaves if leaf.requires_grad]
        totals = [torch.zeros_like(leaf) for leaf in learned]
        grad_lr = torch.zeros_like(lr)
        p = torch.zeros_like(ctx.thetas[0])
        adjoint = call.update.before_last(p)
        back = call.update.back if call.by_formula(lr) else partial(Update.back, call.update)
        for k in reversed(range(call.num_steps)):
            p = _with_arriving(p, grad_out, call.out, k + 1)
            done = call.before.num_steps + k
            step = back(p, adjoint, rates[k], done, ctx.grads[k], ctx.states[k])
            p = step.theta
            adjoint = step.state
            made = ctx.kept.pop(k, None)  # a second way back finds none
            if made is None:
                batch = call.differentiable_batch(leaves, k)
                theta = ctx.thetas[k]
                pulled = call.gradient.pullback(theta, *batch, r=step.r, curvature=call.exact)
            else:
                batch = made.batch
                pulled = made.gradient.pullback(step.r, call.exact)
            of_step = grad_lr if lr.dim() == 0 else grad_lr[k]
            of_step.add_(_of_rate(step, pulled.product))
            if pulled.curvature is not None:
                p = p + step.scale * pulled.curvature
            of_inputs = _of_inputs(batch, pulled.batch, learned)
            _add(totals, of_inputs, step.scale)
        return (None, p, grad_lr, *_in_place(leaves, totals))


def _of_rate(step: Back, product: Tensor) -> Tensor:
    """The gradient in the step size; `product` is <r, g>."""
    if step.lr is not None:
        return step.lr
    if step.carried is None:
        return -product
    return -product - torch.dot(step.r, step.carried)


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
