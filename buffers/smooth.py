"""Smooth and high-quality experts: momentum, clipping loss, gradient penalty.

AST, Shen et al., arXiv 2310.10541.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from buffers.steps import Sgd, Step, StepConfig, statistics_kept
from ddengine.recipe import require


def gradient_penalty(model: nn.Module, images: Tensor, weight: float) -> Tensor:
    """The penalty (): weight * mean over images, rows and columns of (|q| - 1)^2.

    q is the gradient of the sum of all logits in images (N, C, H, W). The norm is over the channels
    of a pixel only, as the released code has it, and not over the image as in WGAN-GP.
    Differentiable in the parameters of `model`.
    """
    leaf = images.detach().requires_grad_()
    q = torch.autograd.grad(model(leaf).float().sum(), leaf, create_graph=True)[0]
    return weight * (torch.linalg.vector_norm(q, dim=1) - 1).square().mean()


@dataclass(frozen=True, kw_only=True)
class Smooth(StepConfig):
    """SGD with momentum on the clipping loss plus gradient penalty."""

    sgd: Sgd = field(
        default_factory=lambda: Sgd(lr=0.003, momentum=0.9, weight_decay=1e-3, decay=0.6)
    )
    # factor on the cross-entropy in the first epoch, rising linearly; 1: no clipping loss
    clip: float = 0.5
    clip_epochs: int = 10  # epochs until the factor is 1
    # weight of the gradient penalty, on the images before augmentation; 0: none
    penalty: float = 2.0

    @property
    def cites(self) -> tuple[str, ...]:
        """Works to cite."""
        return ("shen2023ast",)

    def __post_init__(self) -> None:
        require(
            0 < self.clip <= 1,
            (
                f"buffer.step.clip must be above 0 and at most 1, got {self.clip}; 1 switches the "
                "clipping loss off."
            ),
        )
        require(
            self.clip_epochs >= 1,
            f"buffer.step.clip_epochs must be at least 1, got {self.clip_epochs}.",
        )
        require(
            0 <= self.penalty < float("inf"),
            (
                f"buffer.step.penalty must be finite and not negative, got {self.penalty}; 0 "
                "switches it off."
            ),
        )

    def coefficient(self, epoch: int) -> float:
        """Factor on the cross-entropy in an epoch, counted from 0."""
        return min(1.0, self.clip + (1 - self.clip) * epoch / self.clip_epochs)

    def build(self, model: nn.Module, epochs: int) -> Step:
        """The step on `model` for a training of `epochs` epochs."""
        params = list(model.parameters())
        update = self.sgd.update(model, epochs)

        def step(images: Tensor, labels: Tensor, plain: Tensor, epoch: int) -> Tensor:
            loss = self.coefficient(epoch) * nn.functional.cross_entropy(model(images), labels)
            if self.penalty:
                with statistics_kept(model):
                    loss = loss + gradient_penalty(model, plain, self.penalty)
            update(torch.autograd.grad(loss, params), epoch)
            return loss.detach()

        return Step(step, update)
