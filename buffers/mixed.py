"""Experts that see mixed images: SGD on batches of which some are mixed by CutMix (IDC)."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from buffers.steps import Kept, Sgd, SgdUpdate, Step, StepConfig
from ddengine.learning import augment
from ddengine.learning.losses import mixed_loss
from ddengine.recipe import require

RNG = "rng"  # of the draws, in what is kept


@dataclass(frozen=True, kw_only=True)
class MixedSgd(StepConfig):
    """SGD on the cross-entropy of batches that are mixed by CutMix, each with a probability.

    The networks of TGDD and NCFM are trained so, which have it of IDC (Kim et al., ICML 2022).
    """

    sgd: Sgd = field(
        default_factory=lambda: Sgd(lr=0.01, momentum=0.9, weight_decay=5e-4, thirds=0.2)
    )
    cutmix: float = 0.5  # probability that a batch is mixed

    def __post_init__(self) -> None:
        require(
            0 < self.cutmix <= 1,
            f"buffer.step.cutmix is a probability above 0, got {self.cutmix}; take the step of "
            "another recipe to mix nothing.",
        )

    @property
    def cites(self) -> tuple[str, ...]:
        """Works to cite."""
        return ("yun2019cutmix",)

    def build(self, model: nn.Module, epochs: int) -> Step:
        """The step on `model` for a training of `epochs` epochs."""
        parameters = list(model.parameters())
        update = self.sgd.update(model, epochs)
        # torch's generator was seeded for this expert
        rng = torch.Generator().manual_seed(torch.initial_seed())

        def step(images: Tensor, labels: Tensor, plain: Tensor, epoch: int) -> Tensor:
            num, _, height, width = images.shape
            draw = augment.sample_cutmix(self.cutmix, num, (height, width), rng)
            if draw is not None:
                draw = draw.to(images.device)
                images = augment.cutmix(images, draw)
            loss = mixed_loss(model(images), labels, draw)
            update(torch.autograd.grad(loss, parameters), epoch)
            return loss.detach()

        return Step(step, _KeptDraws(update, rng))


class _KeptDraws(Kept):
    """An optimiser, and the generator that the batches are mixed by."""

    def __init__(self, update: SgdUpdate, rng: torch.Generator):
        self._update, self._rng = update, rng

    def state(self) -> dict[str, Tensor]:
        """The momentum, and where the generator is."""
        return self._update.state() | {RNG: self._rng.get_state()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on with them."""
        tensors = dict(state)
        self._rng.set_state(tensors.pop(RNG).cpu())
        self._update.restore(tensors)
