"""Updates of inner training: how parameters move by their gradient.

And how gradients flow back through one update.
"""

from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from ddengine.recipe import TorchStep, require
from ddengine.system.configs import LATE

State = tuple[Tensor, ...]  # what an update keeps between steps, each (P,)


class Back(NamedTuple):
    """Gradients of a function of what an update gives, in what it was given."""

    r: Tensor  # (P,), with which the inner gradient is pulled back ...
    scale: Tensor | float  # ... and the factor on what comes of that
    theta: Tensor  # in the parameters before, apart from what the inner gradient adds
    state: State  # in the state before
    # in the step size; None: what `scale` is minus one times, so that it is -<r, g + carried>
    lr: Tensor | None = None
    # (P,), what of a state from before the first step moves the parameters beside g
    carried: Tensor | None = None


class Update(Protocol):
    """One step of inner training, a frozen dataclass that subclasses this.

    A new one needs `step` alone, and `start` where it keeps something: `back` differentiates that
    step exactly, for which the gradients and states of all steps are stored. An update that is
    linear in the gradient says so in `linear` and has a `back` that needs neither, where all steps
    have one size.
    """

    @property
    def linear(self) -> bool:
        """Whether `back` needs neither the gradient nor the state, so that none is stored.

        But for the state before the first step, which it is given with that step.
        """
        return False

    @property
    def unwatched(self) -> "Update":
        """The update of steps that no gradient flows through; mostly itself."""
        return self

    @property
    def in_torch(self) -> TorchStep | None:
        """The same update as an optimiser of torch; None where there is none."""
        return None

    def start(self, theta: Tensor) -> State:
        """What is kept before the first step; nothing for most."""
        return ()

    def step(
        self, theta: Tensor, grad: Tensor, state: State, lr: Tensor, k: int
    ) -> tuple[Tensor, State]:
        """The parameters (P,) and the state after step k, counted from 0; differentiable.

        `state` is what `start` gives before the first step, or what steps before left.
        """
        ...

    def before_last(self, theta: Tensor) -> State:
        """The gradient in the state after the last step, of which nothing is asked."""
        return tuple(torch.zeros_like(kept) for kept in self.start(theta))

    def back(
        self, p: Tensor, adjoint: State, lr: Tensor, k: int, grad: Tensor | None, state: State
    ) -> Back:
        """The gradients before step k.

        They are made of those after it: `p` (P,) in the parameters and `adjoint` in the state.
        `grad` and `state` are what the step was given; of a linear update grad is None, and the
        state is that of the first step, () for others.
        """
        assert grad is not None
        theta = torch.zeros_like(p).requires_grad_()
        leaves = [t.detach().requires_grad_() for t in (grad, lr, *state)]
        grad_leaf, lr_leaf, *state_leaves = leaves
        with torch.enable_grad():
            moved, kept = self.step(theta, grad_leaf, tuple(state_leaves), lr_leaf, k)
            by_theta, by_grad, by_lr, *by_state = torch.autograd.grad(
                [moved, *kept],
                [theta, *leaves],
                [p, *adjoint],
                allow_unused=True,
                materialize_grads=True,
            )
        return Back(by_grad, 1.0, by_theta, tuple(by_state), by_lr)


@dataclass(frozen=True, kw_only=True)
class Sgd(Update):
    """Plain gradient descent: theta - lr g."""

    @property
    def linear(self) -> bool:
        """In the gradient."""
        return True

    def step(
        self, theta: Tensor, grad: Tensor, state: State, lr: Tensor, k: int
    ) -> tuple[Tensor, State]:
        """The parameters (P,) after a step."""
        return theta - lr * grad, ()

    def back(
        self, p: Tensor, adjoint: State, lr: Tensor, k: int, grad: Tensor | None, state: State
    ) -> Back:
        """With r = p."""
        return Back(p, -lr, p, ())

    @property
    def in_torch(self) -> TorchStep:
        """SGD."""
        return TorchStep(name="SGD")


@dataclass(frozen=True, kw_only=True)
class HeavyBall(Update):
    """Momentum as torch.optim.SGD has it.

    theta - lr b_k with b_k = momentum b_{k-1} + g_k and b_0 = g_0.
    """

    momentum: float = 0.9  # 0 <= momentum < 1

    def __post_init__(self) -> None:
        require(
            0 <= self.momentum < 1,
            f"momentum of HeavyBall must be at least 0 and below 1, got {self.momentum}.",
        )

    @property
    def linear(self) -> bool:
        """In all gradients so far."""
        return True

    def step(
        self, theta: Tensor, grad: Tensor, state: State, lr: Tensor, k: int
    ) -> tuple[Tensor, State]:
        """The parameters (P,) and the velocity after a step."""
        velocity = grad
        if state:
            velocity = self.momentum * state[0] + grad
        return theta - lr * velocity, (velocity,)

    def before_last(self, theta: Tensor) -> State:
        """The r of the step after, which there is none of."""
        return (torch.zeros_like(theta),)

    def back(
        self, p: Tensor, adjoint: State, lr: Tensor, k: int, grad: Tensor | None, state: State
    ) -> Back:
        """With r_k = p + momentum r_{k+1}.

        The state's gradient is -lr momentum r_{k+1}, and r is what is carried in its place.
        """
        (velocity,) = adjoint
        r = p + self.momentum * velocity
        carried = None
        if state:
            carried = self.momentum * state[0]
        return Back(r, -lr, p, (r,), carried=carried)

    @property
    def in_torch(self) -> TorchStep:
        """SGD with momentum."""
        return TorchStep(name="SGD", momentum=self.momentum)


@dataclass(frozen=True, kw_only=True)
class Adam(Update):
    """Adam with bias correction, in one of two places for eps.

    torch.optim.Adam has eps beside the root of the corrected mean square, `higher` beside the root
    of the mean square as it is, which makes the same eps larger in the first steps.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    # whose place of eps differentiated steps have; others have torch's
    eps_as: Literal["torch", "higher"] = field(default="torch", metadata=LATE)

    def __post_init__(self) -> None:
        for name, beta in (("beta1", self.beta1), ("beta2", self.beta2)):
            require(
                0 <= beta < 1,
                f"{name} of Adam must be at least 0 and below 1, got {beta}; 0.9 and 0.999 are "
                "usual.",
            )
        require(
            0 < self.eps < float("inf"),
            f"eps of Adam must be positive and finite, got {self.eps}; 1e-8 is usual.",
        )

    @property
    def unwatched(self) -> "Adam":
        """With torch's place of eps."""
        return replace(self, eps_as="torch")

    def start(self, theta: Tensor) -> State:
        """The means of gradients and of their squares, zero."""
        return torch.zeros_like(theta), torch.zeros_like(theta)

    def step(
        self, theta: Tensor, grad: Tensor, state: State, lr: Tensor, k: int
    ) -> tuple[Tensor, State]:
        """The parameters (P,) and the two means after a step."""
        mean, square = state
        mean = self.beta1 * mean + (1 - self.beta1) * grad
        square = self.beta2 * square + (1 - self.beta2) * grad.square()
        finished = k + 1
        corrected = mean / (1 - self.beta1**finished)
        of_square = 1 - self.beta2**finished
        if self.eps_as == "torch":
            divisor = _root(square / of_square) + self.eps
        else:
            divisor = (_root(square) + self.eps) / of_square**0.5
        return theta - lr * corrected / divisor, (mean, square)

    @property
    def in_torch(self) -> TorchStep:
        """Adam; what `higher` makes of it has its own place of eps."""
        return TorchStep(name="Adam", betas=(self.beta1, self.beta2), eps=self.eps)


def _root(square: Tensor) -> Tensor:
    """The square root, with derivative 0 at 0, where the mean gradient that it divides is 0 too."""
    positive = square > 0
    return torch.where(positive, square, 1.0).sqrt() * positive
