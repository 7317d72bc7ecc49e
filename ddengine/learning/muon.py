"""Muon of the matrices of a network, with AdamW of all else.

Muon (Jordan, 2024) is torch.optim.Muon, of torch 2.9 and later, which takes matrices alone. A
convolution is a matrix of its output channels and of all else. Biases, normalisation layers and the
last layer are trained by AdamW, as its author has it. Steps have the length that AdamW's have, so
both share one rate (`match_rms_adamw`).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ddengine.recipe import require

LENGTH = "match_rms_adamw"
BETAS = (0.9, 0.999)  # of AdamW


def check() -> None:
    """Raise UserError for a torch without Muon."""
    require(
        "Muon" in vars(torch.optim),
        f"evaluation.optimiser muon is of torch 2.9 and later, and this is torch "
        f"{torch.__version__}; install a newer one, or set evaluation.optimiser adamw.",
    )


@dataclass
class Muon:
    """Both optimisers as one, with what training asks of one of torch."""

    matrices: torch.optim.Optimizer
    rest: torch.optim.Optimizer
    # parameters (out, ...), or of n networks (n, out, ...), with the matrices (out, in) in them
    views: list[tuple[Tensor, list[Tensor]]] = field(default_factory=list)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Those of both."""
        return [*self.matrices.param_groups, *self.rest.param_groups]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""
        self.rest.zero_grad(set_to_none=set_to_none)
        for parameter, _ in self.views:
            parameter.grad = None

    def step(self) -> None:
        """One update."""
        for parameter, matrices in self.views:
            assert parameter.grad is not None
            grads = parameter.grad.reshape(len(matrices), *matrices[0].shape)
            for matrix, grad in zip(matrices, grads, strict=True):
                matrix.grad = grad
        self.matrices.step()
        self.rest.step()


def _matrices(parameter: Tensor, networks: int) -> list[Tensor]:
    """The matrix (out, in) of each network in a parameter, which share its memory."""
    outputs = parameter.shape[1 if networks > 1 else 0]
    return list(parameter.detach().view(networks, outputs, -1).unbind())


def muon(
    parameters: Mapping[str, Tensor],
    spared: set[str],
    lr: float,
    weight_decay: float,
    *,
    networks: int,
) -> Muon:
    """A new one of parameters by name, in their order.

    Args:
        parameters: of one network, or of several, stacked.
        spared: those without weight decay.
        lr: the rate.
        weight_decay: of all others.
        networks: how many.
    """
    fewest = 2 if networks == 1 else 3  # dimensions of a matrix, stacked or not
    weights = [parameter for parameter in parameters.values() if parameter.dim() >= fewest]
    views = []
    matrices: list[Tensor] = []
    for parameter in weights[:-1]:  # all but the last layer
        of_networks = _matrices(parameter, networks)
        views.append((parameter, of_networks))
        matrices += of_networks
    hidden = {id(parameter) for parameter, _ in views}
    groups = list(_groups(parameters, hidden, spared, weight_decay))
    require(
        bool(matrices),
        "evaluation.optimiser muon trains layers before the last one, and this network has none; "
        "set evaluation.optimiser adamw.",
    )
    of_matrices = torch.optim.Muon(matrices, lr, weight_decay=weight_decay, adjust_lr_fn=LENGTH)
    return Muon(of_matrices, torch.optim.AdamW(groups, lr, betas=BETAS), views)


def _groups(
    parameters: Mapping[str, Tensor], hidden: set[int], spared: set[str], weight_decay: float
) -> Iterator[dict[str, Any]]:
    """What AdamW trains, with weight decay and without."""
    for decay, without in ((weight_decay, False), (0.0, True)):
        chosen = []
        for name, parameter in parameters.items():
            if id(parameter) not in hidden and (name in spared) == without:
                chosen.append(parameter)
        if chosen:
            yield {"params": chosen, "weight_decay": decay}
