"""Optimisers of torch by their names."""

from collections.abc import Iterable
from typing import Any

import torch

from ddengine.recipe import TorchStep

# whose steps `higher` differentiates; not RMSprop, of which it says itself that its gradients are
# not right
DIFFERENTIABLE = ("SGD", "Adam", "Adagrad", "Adadelta", "Adamax")


def torch_optimiser(
    step: TorchStep, parameters: Iterable[Any], lr: float, weight_decay: float
) -> torch.optim.Optimizer:
    """A new optimiser of these parameters, or of these groups of them."""
    kind = vars(torch.optim)[step.name]
    return kind(parameters, lr=lr, weight_decay=weight_decay, **settings(step))


def settings(step: TorchStep) -> dict[str, Any]:
    """What an optimiser is given beside its rate and its weight decay."""
    if step.name == "SGD":
        return {"momentum": step.momentum}
    if step.name == "Adam":
        return {"betas": step.betas, "eps": step.eps}
    return {}


def is_of_torch(name: str) -> bool:
    """Whether torch.optim has an optimiser of that name."""
    kind = vars(torch.optim).get(name)
    return isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)
