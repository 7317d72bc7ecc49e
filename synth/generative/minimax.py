"""The two losses of MinimaxDiffusion (Gu et al., CVPR 2024, arXiv 2311.15529).

With cosines c of the clean latent that the denoiser predicts and those remembered of its class:

    represent * -(least c with real latents) + diversify * (largest c with predicted ones)

So predictions come nearer to all real latents, and away from each other.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from synth.generative.config import DenoiserConfig


@dataclass
class Memory:
    """The directions of the latents of each class that came last: real ones, and predicted ones."""

    represent: float
    diversify: float
    real: Tensor  # (K, M, D), 0 where nothing came yet
    predicted: Tensor  # (K, M, D)
    seen: Tensor  # (K,) latents of each class that came, as floats

    @staticmethod
    def empty(config: DenoiserConfig, classes: int, width: int, device: torch.device) -> "Memory":
        """That of no latents, of `width` values each."""
        shape = (classes, config.memory, width)
        real, predicted = torch.zeros(shape, device=device), torch.zeros(shape, device=device)
        seen = torch.zeros(classes, device=device)
        return Memory(config.represent, config.diversify, real, predicted, seen)

    def tensors(self) -> dict[str, Tensor]:
        """What is kept between updates."""
        return {"real": self.real, "predicted": self.predicted, "seen": self.seen}

    def loss(self, predicted: Tensor, real: Tensor, classes: Tensor) -> Tensor:
        """The loss () of latents (B, c, h, w), which are remembered after it."""
        directions = functional.normalize(predicted.flatten(1), dim=1)
        filled = torch.arange(self.real.shape[1], device=classes.device)
        missing = filled >= self.seen[classes].unsqueeze(1)  # (B, M)
        to_real = torch.einsum("bmd,bd->bm", self.real[classes], directions)
        to_predicted = torch.einsum("bmd,bd->bm", self.predicted[classes], directions)
        least = to_real.masked_fill(missing, 2.0).amin(1)
        most = to_predicted.masked_fill(missing, -2.0).amax(1)
        known = (~missing).any(1)
        terms = self.diversify * most - self.represent * least
        self._remember(directions, functional.normalize(real.flatten(1), dim=1), classes)
        return terms.where(known, torch.zeros_like(terms)).mean()

    @torch.no_grad()
    def _remember(self, predicted: Tensor, real: Tensor, classes: Tensor) -> None:
        """Put the latents of a batch in the places of the oldest of their classes."""
        for row, label in enumerate(classes.tolist()):
            place = int(self.seen[label]) % self.real.shape[1]
            self.real[label, place] = real[row]
            self.predicted[label, place] = predicted[row]
            self.seen[label] += 1
