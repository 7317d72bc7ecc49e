"""Sampling images around modes of real latents.

MGD3: Chan-Santiago et al., ICML 2025, arXiv 2505.18963. D4M: Su et al., CVPR 2024, arXiv
2407.15138. Guidance without a classifier: Ho & Salimans, 2022, arXiv 2207.12598.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Generator, Tensor

from synth.generative.parts import Prediction
from synth.generative.schedule import Step


class Denoiser(Protocol):
    """(noisy latents (B, c, h, w), times (B,), labels (B,)) -> what it says of them."""

    def __call__(self, noisy: Tensor, times: Tensor, labels: Tensor) -> Prediction:
        """See the class."""
        ...


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """How sampling is guided."""

    modes: float = 0.1  # s, towards the mode; 0: not
    stop: int = 25  # the last so many steps are not guided towards the mode
    classes: float = 4.0  # weight of what is predicted of the class; 1: it alone


def guided_prediction(
    denoiser: Denoiser, noisy: Tensor, step: Step, labels: Tensor, null: int, weight: float
) -> Prediction:
    """What the denoiser says with guidance: without a class, and the difference times `weight`.

    Its variance is that with the class.
    """
    times = torch.full_like(labels, step.time)
    if weight == 1:
        return denoiser(noisy, times, labels)
    without = torch.full_like(labels, null)
    both = denoiser(
        torch.cat([noisy, noisy]),
        torch.cat([times, times]),
        torch.cat([labels, without]),
    )
    of_class, of_none = both.noise.chunk(2)
    noise = of_none + weight * (of_class - of_none)
    variance = both.variance
    if variance is not None:
        variance, _ = variance.chunk(2)
    return Prediction(noise, variance)


def deviation(step: Step, variance: Tensor | None) -> Tensor | float:
    """The standard deviation of the noise that a step adds; the last step adds none.

    It is the posterior's, or lies between that and beta where the denoiser says so, on a scale of
    logarithms (Nichol & Dhariwal, 2021, eq. 15).
    """
    if variance is None:
        return step.variance**0.5
    low = math.log(step.variance)
    high = math.log(step.beta)
    share = (variance + 1) / 2
    logarithm = share * high + (1 - share) * low
    return (0.5 * logarithm).exp()


@torch.no_grad()
def sample(  # long: arguments, and what they mean
    denoiser: Denoiser,
    steps: Sequence[Step],
    labels: Tensor,
    modes: Tensor | None,
    streams: Sequence[Generator],
    *,
    shape: tuple[int, ...],
    null: int,
    guidance: Guidance = Guidance(),
    strength: float = 1.0,
) -> Tensor:
    """Latents (B, c, h, w), scaled as the denoiser sees them.

    Each step is DDPM's, guided towards the modes m by the clean latents x0 that are predicted,
    while its index, counted from the last, is above `guidance.stop`:

        x <- mean + sigma noise + s sigma (m - x0)

    Args:
        denoiser: what says the noise.
        steps: the times, ascending.
        labels: the denoiser's numbers of the classes (B,).
        modes: (B, c, h, w), scaled; None guides nowhere.
        streams: a generator for each image, so that no image depends on the others of its batch.
        shape: (c, h, w).
        null: the number that stands for no class.
        guidance: how strongly, and how long.
        strength: 1 starts from noise; less, from modes with the noise of the time at that share of
            all steps (image to image, D4M).
    """
    share = round(strength * len(steps))
    sampled = steps[: max(1, share)]
    device = labels.device
    noisy = _noise(streams, shape, device)
    if strength < 1:
        assert modes is not None, "modes to start from"
        noisy = sampled[-1].noised(modes, noisy)
    for index, step in reversed(list(enumerate(sampled))):
        prediction = guided_prediction(denoiser, noisy, step, labels, null, guidance.classes)
        clean = step.clean(noisy, prediction.noise)
        noisy = step.mean(noisy, clean)
        noise = _noise(streams, shape, device)
        if index == 0:  # the last step adds nothing
            break
        sigma = deviation(step, prediction.variance)
        noisy = noisy + sigma * noise
        if modes is not None and guidance.modes and index > guidance.stop:
            noisy = noisy + guidance.modes * sigma * (modes - clean)
    return noisy


def _noise(streams: Sequence[Generator], shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Normal noise (B, ...), a stream for each image."""
    drawn = [torch.randn(shape, generator=stream) for stream in streams]
    return torch.stack(drawn).to(device)


def modes_of(latents: Tensor, number: int, kind: str, seed: int = 0) -> Tensor:
    """(number, ...) centres of k-means of the latents (N, ...) of a class, or the latents nearest.

    `kind` is centre or real. Its random numbers are those of `seed`.
    """
    from sklearn.cluster import KMeans  # a second to import

    flat = latents.flatten(1).cpu().double()
    means = KMeans(n_clusters=number, random_state=seed, n_init="auto").fit(flat.numpy())
    centres = torch.from_numpy(means.cluster_centers_)
    if kind == "real":
        nearest = torch.cdist(centres, flat).argmin(1)
        return latents[nearest.to(latents.device)]
    shape = latents.shape[1:]
    return centres.to(latents).unflatten(1, shape)
