"""Training whose last steps are differentiated by `higher` (Grefenstette et al., 2019).

It takes optimisers of torch. The first steps are plain ones of the optimiser itself; `higher`
copies its state and makes the last ones differentiable. All graphs of these are kept, so memory
grows with their number.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ddengine.learning.flat import FlatModel, trainable
from ddengine.learning.through import Student, Watch, constants
from ddengine.learning.torch_steps import DIFFERENTIABLE, is_of_torch, torch_optimiser
from ddengine.learning.unroll import BatchFn, Inputs
from ddengine.learning.updates import Update
from ddengine.recipe import TorchStep, require
from ddengine.system.errors import UserError
from ddengine.system.runtime import autocast

# (outputs (B, K), the tensors of a batch behind its images) -> a scalar
OutputsLoss = Callable[..., Tensor]


@dataclass(frozen=True, kw_only=True)
class TorchOptimiser:
    """An optimiser of torch.optim by its name, with the settings that torch gives it."""

    name: str = "Adagrad"  # Adagrad | Adadelta | Adamax | SGD | Adam

    def __post_init__(self) -> None:
        offered = ", ".join(DIFFERENTIABLE)
        require(
            is_of_torch(self.name),
            f"objective.update.name {self.name} is no optimiser of torch.optim; set one of "
            f"{offered}.",
        )
        require(
            self.name in DIFFERENTIABLE,
            f"objective.inner higher cannot differentiate torch's {self.name}; set "
            f"objective.update.name to one of {offered}, or take objective.update from a recipe "
            "with Sgd, HeavyBall or Adam, which objective.inner unroll differentiates.",
        )

    @property
    def in_torch(self) -> TorchStep:
        """Itself."""
        return TorchStep(name=self.name)


def check(update: Update | TorchOptimiser) -> TorchStep:
    """The optimiser of torch that `higher` is to differentiate.

    Raises UserError for an update that is none of them.
    """
    step = update.in_torch
    if step is None:
        raise UserError(
            "objective.inner higher makes steps of torch's optimisers differentiable, and "
            f"{type(update).__name__} is none of them; set objective.inner unroll."
        )
    return step


@dataclass(frozen=True)
class ByHigher(Student):
    """By an optimiser of torch, whose steps in the window `higher` differentiates.

    `batch` gives images first, then what `loss` takes beside the outputs of the network.
    """

    model: FlatModel
    loss: OutputsLoss
    update: Update | TorchOptimiser
    weight_decay: float

    def through(
        self, batch: BatchFn, theta: Tensor, inputs: Inputs, warm: int, window: int, rates: Tensor
    ) -> Tensor:
        """By the optimiser itself, then by its copy."""
        import higher

        network = trainable(self.model, theta)
        optimiser = self._plain(network, batch, constants(inputs), warm, rates.detach())
        for kept in optimiser.state.values():
            if "step" in kept:  # counted in float32, in which powers of a beta are rounded
                kept["step"] = float(kept["step"])
        with higher.innerloop_ctx(network, optimiser) as (stepped, steps):
            for k in range(warm, warm + window):
                loss = self._loss(stepped, batch(inputs, k))
                rate = rates if rates.dim() == 0 else rates[k]
                steps.step(loss, override={"lr": [rate]})
            return flat(list(stepped.parameters()))

    def watched(
        self,
        batch: BatchFn,
        theta: Tensor,
        inputs: Inputs,
        num_steps: int,
        rates: Tensor,
        watch: Watch,
    ) -> None:
        """By the optimiser itself."""
        network = trainable(self.model, theta)
        self._plain(network, batch, constants(inputs), num_steps, rates, watch)

    def _plain(
        self,
        network: nn.Module,
        batch: BatchFn,
        inputs: Inputs,
        num_steps: int,
        rates: Tensor,
        watch: Watch | None = None,
    ) -> torch.optim.Optimizer:
        """The optimiser after it has trained the network, in place."""
        parameters = list(network.parameters())
        optimiser = torch_optimiser(check(self.update), parameters, 1.0, self.weight_decay)
        for k in range(num_steps):
            loss = self._loss(network, batch(inputs, k))
            gradients = torch.autograd.grad(loss, parameters)
            if watch is not None:  # `optimiser` adds weight decay to the gradient itself
                watch(flat(gradients) + self.weight_decay * flat(parameters).detach())
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            optimiser.param_groups[0]["lr"] = float(rates if rates.dim() == 0 else rates[k])
            optimiser.step()
        return optimiser

    def _loss(self, network: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        """The loss of a batch."""
        images, *rest = batch
        with autocast(images.device, self.model.precision):
            outputs = network(images)
        dtype = next(network.parameters()).dtype
        return self.loss(outputs.to(dtype), *rest)


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """All numbers of the tensors (P,), one tensor after another."""
    return torch.cat([tensor.flatten() for tensor in tensors])
