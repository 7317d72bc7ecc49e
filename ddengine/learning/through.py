"""A student that is trained, and whose last steps are differentiated.

Training is warm steps without a graph, then a window of steps through which gradients flow. What
the warm steps reached, the state of the update among it, is a constant to the window.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from ddengine.learning.inner import InnerGradient
from ddengine.learning.unroll import BatchFn, Inputs, rates_of, train, unroll
from ddengine.learning.updates import Update

Watch = Callable[[Tensor], None]


class Student(Protocol):
    """How a student steps, and how gradients flow back through its steps."""

    def through(
        self, batch: BatchFn, theta: Tensor, inputs: Inputs, warm: int, window: int, rates: Tensor
    ) -> Tensor:
        """The parameters (P,) after `warm` steps from `theta` (P,), and `window` steps more.

        They are differentiable in `inputs` and in `rates`: one step size, or one of each step (T,),
        of which only those of the window matter; T is at least warm + window. `batch` is as
        `unroll` takes it.
        """
        ...

    def watched(
        self,
        batch: BatchFn,
        theta: Tensor,
        inputs: Inputs,
        num_steps: int,
        rates: Tensor,
        watch: Watch,
    ) -> None:
        """Train without a graph; `watch` is given the gradient (P,) of every step.

        Weight decay is part of it.
        """
        ...


def constants(inputs: Inputs) -> Inputs:
    """The same tensors, which no gradient reaches."""
    return {name: tensor.detach() for name, tensor in inputs.items()}


@dataclass(frozen=True)
class ByUnroll(Student):
    """By our own updates, which `unroll` differentiates."""

    gradient: InnerGradient
    update: Update
    backprop: Literal["full", "replay"]
    kept_graphs: int = 0  # of so many last steps of the window, replay keeps the graphs

    def through(
        self, batch: BatchFn, theta: Tensor, inputs: Inputs, warm: int, window: int, rates: Tensor
    ) -> Tensor:
        """By `train`, then by `unroll`."""

        def of_window(tensors: Inputs, k: int) -> tuple[Tensor, ...]:
            return batch(tensors, warm + k)

        before = train(
            self.gradient,
            batch,
            theta,
            constants(inputs),
            warm,
            lr=rates_of(rates, 0, warm),
            update=self.update.unwatched,
        )
        reached = unroll(
            self.gradient,
            of_window,
            before.theta,
            inputs,
            window,
            lr=rates_of(rates, warm, window),
            update=self.update,
            backprop=self.backprop,
            kept_graphs=min(self.kept_graphs, window),
            before=before,
        )
        return reached[0]

    def watched(
        self,
        batch: BatchFn,
        theta: Tensor,
        inputs: Inputs,
        num_steps: int,
        rates: Tensor,
        watch: Watch,
    ) -> None:
        """By `train`."""
        train(
            self.gradient,
            batch,
            theta,
            constants(inputs),
            num_steps,
            lr=rates,
            update=self.update.unwatched,
            watch=watch,
        )
