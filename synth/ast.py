"""AST: alignment with smooth and high-quality expert trajectories. Shen et al., arXiv 2310.10541.

What it adds to trajectory matching: three functions for the slots of the objective, here; the
heavy-ball student is `objective.momentum`; `init.kind` representative; experts of `buffers.smooth`.
Each can be left out alone (`--take objective.perturb=mtt/cifar10_ipc10`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Generator, Tensor

from ddengine.recipe import require
from ddengine.system.runtime import sent
from synth.trajectory import Milestones

CITES = ("shen2023ast",)


@dataclass(frozen=True, kw_only=True)
class WeightNoise:
    """Weight perturbation: a convolution weight W of the start becomes W (1 + alpha d / |d|).

    With d normal, anew for each segment.
    """

    cites: ClassVar[tuple[str, ...]] = CITES
    alpha: float = 1.0

    def __post_init__(self) -> None:
        require(
            0 <= self.alpha < math.inf,
            f"objective.perturb.alpha must be finite and not negative, got {self.alpha}.",
        )

    def __call__(self, theta: Tensor, shapes: tuple[torch.Size, ...], rng: Generator) -> Tensor:
        """The perturbed start (P,)."""
        num = sum(shape.numel() for shape in shapes if len(shape) == 4)
        normal = sent(torch.randn(num, generator=rng).to(theta.dtype), theta.device)
        return perturbed(theta, shapes, normal, self.alpha)


def perturbed(theta: Tensor, shapes: Sequence[torch.Size], normal: Tensor, alpha: float) -> Tensor:
    """Weights W (1 + alpha d / |d|) of the 4-D tensors in `theta` (P,); other tensors stay.

    The d are their parts of `normal`, in order.
    """
    sizes = [shape.numel() for shape in shapes]
    perturbed_parts = []
    used = 0
    for weights, shape in zip(theta.split(sizes), shapes, strict=True):
        if len(shape) == 4:
            noise = normal[used : used + len(weights)]
            used += len(weights)
            weights = weights * (1 + alpha * noise / noise.norm())
        perturbed_parts.append(weights)
    return torch.cat(perturbed_parts)


@dataclass(frozen=True, kw_only=True)
class BalancedLoss:
    """Balanced inner-loop loss: late segments weigh more.

    With h = floor(T+ / 2), times log_5(t - h + 8) for start epochs t from h on, divided by log_5(h
    - t + 8) before.
    """

    cites: ClassVar[tuple[str, ...]] = CITES

    def __call__(self, start: int, end: int) -> float:
        """Factor on the inner loss of a segment that starts at epoch `start`.

        Segments start before epoch `end`, T+.
        """
        half = end // 2
        if start >= half:
            return math.log(start - half + 8, 5)
        return 1 / math.log(half - start + 8, 5)


@dataclass(frozen=True, kw_only=True)
class IntermediateMatching:
    """Intermediate matching loss, at M - 1 points on the way.

    After floor(N / M) j inner steps the student is compared with the expert's epoch t + j,
    j = 1..M-1.
    """

    cites: ClassVar[tuple[str, ...]] = CITES
    weights: Literal["equal", "rising"] = "equal"  # 1 for each, or j / M

    def __call__(self, num_steps: int, length: int) -> Milestones:
        """((inner step, expert epochs after the start, weight), ...).

        Of `num_steps` inner steps and `length` expert epochs.
        """
        milestones = []
        for epoch in range(1, length):
            weight = 1.0
            if self.weights == "rising":
                weight = epoch / length
            milestones.append((num_steps // length * epoch, epoch, weight))
        return tuple(milestones)
