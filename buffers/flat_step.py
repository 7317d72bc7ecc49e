"""Experts that end in flat minima: GSAM, the training step of FTD and DATM.

Zhuang et al., Surrogate Gap Minimization Improves Sharpness-Aware Training, ICLR 2022; used for
experts by Du et al., Minimizing the Accumulated Trajectory Error to Improve Dataset Distillation,
CVPR 2023, arXiv 2211.11004.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from buffers.steps import Sgd, Step, StepConfig, statistics_kept
from ddengine.learning.flat import flatten, unflatten_into
from ddengine.recipe import require

EPS = 1e-12


def perturbation(w: Tensor, g: Tensor, rho: float, adaptive: bool) -> Tensor:
    """The way (P,) to the worst point nearby: rho g / |g|, adaptive: rho w^2 g / |w g|.

    Of weights w (P,) and their gradient g (P,); products are elementwise.
    """
    if not adaptive:
        return rho / (g.norm() + EPS) * g
    norm = (w * g).norm()
    return rho / (norm + EPS) * w.square() * g


def direction(g: Tensor, perturbed: Tensor, alpha: float) -> Tensor:
    """The step (P,) g' - alpha (g - (<g, g'> / |g'|^2) g').

    That is the gradient g' (P,) there, against the part of g (P,) here that is orthogonal to it.
    """
    length = perturbed.square().sum() + EPS**2
    along = torch.dot(g, perturbed) / length
    orthogonal = g - along * perturbed
    return perturbed - alpha * orthogonal


@dataclass(frozen=True, kw_only=True)
class Gsam(StepConfig):
    """Sharpness-aware SGD: two gradients a step, on the same batch.

    Alpha is part of the store's fingerprint (the released one forgets it).

    Train such experts in float32: with bfloat16 the rounding of the two gradients is of the size of
    their difference.
    """

    sgd: Sgd = field(default_factory=Sgd)
    rho: float = 0.01  # radius of the neighbourhood
    alpha: float = 0.3  # weight of the orthogonal part; 0 is SAM
    adaptive: bool = True  # scale the neighbourhood by the weights (ASAM)

    @property
    def cites(self) -> tuple[str, ...]:
        """Works to cite."""
        return ("zhuang2022gsam",)

    def __post_init__(self) -> None:
        require(
            0 <= self.rho < float("inf"),
            f"buffer.step.rho must be finite and not negative, got {self.rho}; 0 is plain SGD.",
        )
        require(
            0 <= self.alpha < float("inf"),
            f"buffer.step.alpha must be finite and not negative, got {self.alpha}; 0 is SAM.",
        )

    def build(self, model: nn.Module, epochs: int) -> Step:
        """The step on `model` for a training of `epochs` epochs.

        Dropout, if any, draws new masks for the second gradient.
        """
        params = list(model.parameters())
        update = self.sgd.update(model, epochs)
        sizes = [p.numel() for p in params]

        def gradient(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            loss = nn.functional.cross_entropy(model(images), labels)
            of_params = torch.autograd.grad(loss, params)
            return loss.detach(), torch.cat([g.flatten() for g in of_params])

        def move_to(w: Tensor) -> None:
            unflatten_into(model, w)
            # under autocast the casts of other weights would be used again
            torch.clear_autocast_cache()

        def step(images: Tensor, labels: Tensor, plain: Tensor, epoch: int) -> Tensor:
            w = flatten(model)
            loss, g = gradient(images, labels)
            with torch.no_grad():
                move_to(w + perturbation(w, g, self.rho, self.adaptive))
            with statistics_kept(model):
                _, perturbed = gradient(images, labels)
            with torch.no_grad():
                move_to(w)
                parts = direction(g, perturbed, self.alpha).split(sizes)
                update(list(map(Tensor.view_as, parts, params)), epoch)
            return loss

        return Step(step, update)
