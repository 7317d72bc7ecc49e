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
        return Memory(
            represent=config.represent,
            diversify=config.diversify,
            real=torch.zeros(shape, device=device),
            predicted=torch.zeros(shape, device=device),
            seen=torch.zeros(classes, device=device),
        )

    def tensors(self) -> dict[str, Tensor]:
        """What is kept between updates."""
        return {"real": self.real, "predicted": self.predicted, "seen": self.seen}

    def loss(self, predicted: Tensor, real: Tensor, classes: Tensor) -> Tensor:
        """The loss () of latents (B, c, h, w), which are remembered after it."""
        directions = _directions(predicted)
        missing = self._missing(classes)
        to_real = _cosines(self.real[classes], directions)
        to_predicted = _cosines(self.predicted[classes], directions)
        least = to_real.masked_fill(missing, 2.0).amin(1)  # above every cosine
        most = to_predicted.masked_fill(missing, -2.0).amax(1)
        terms = self.diversify * most - self.represent * least
        known = ~missing.all(1)
        self._remember(directions, _directions(real), classes)
        return terms.where(known, 0.0).mean()

    def _missing(self, classes: Tensor) -> Tensor:
        """Which places of the memories of classes (B,) hold nothing yet: (B, M) bool."""
        places = torch.arange(self.real.shape[1], device=classes.device)
        seen = self.seen[classes]
        return places >= seen.unsqueeze(1)

    @torch.no_grad()
    def _remember(self, predicted: Tensor, real: Tensor, classes: Tensor) -> None:
        """Put the directions of a batch in the places of the oldest of their classes."""
        length = self.real.shape[1]
        for row, label in enumerate(classes.tolist()):
            place = int(self.seen[label]) % length
            self.real[label, place] = real[row]
            self.predicted[label, place] = predicted[row]
            self.seen[label] += 1


def _directions(latents: Tensor) -> Tensor:
    """Latents (B, c, h, w) as vectors (B, D) of length 1."""
    flat = latents.flatten(1)
    return functional.normalize(flat, dim=1)


def _cosines(remembered: Tensor, directions: Tensor) -> Tensor:
    """Cosines (B, M) of directions (B, D) with those that are remembered (B, M, D)."""
    return torch.einsum("bmd,bd->bm", remembered, directions)
