"""The noise of a diffusion model by time, and a few of its times (Ho et al. 2020; Nichol 2021)."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ddengine.system.errors import UserError
from synth.generative.weights import from_folder, library


class Step(NamedTuple):
    """One of the few times of a sampling, of an index from 0, the last to be sampled."""

    time: int
    alpha_bar: float  # the share of the clean latents' variance at this time, alpha bar
    alpha_bar_prev: float  # at the next time that is sampled; 1 after the last

    @property
    def beta(self) -> float:
        """The variance that this step adds, of those left out with it."""
        return 1 - self.alpha_bar / self.alpha_bar_prev

    @property
    def variance(self) -> float:
        """The posterior's, beta tilde: the least that a denoiser may say."""
        return self.beta * (1 - self.alpha_bar_prev) / (1 - self.alpha_bar)

    def noised(self, clean: Tensor, noise: Tensor) -> Tensor:
        """Clean latents with the noise of this time."""
        return self.alpha_bar**0.5 * clean + (1 - self.alpha_bar) ** 0.5 * noise

    def clean(self, noisy: Tensor, noise: Tensor) -> Tensor:
        """The latents that noisy ones are taken to be, with the noise that is predicted."""
        return (noisy - (1 - self.alpha_bar) ** 0.5 * noise) / self.alpha_bar**0.5

    def mean(self, noisy: Tensor, clean: Tensor) -> Tensor:
        """The posterior's mean of the latents after this step."""
        of_clean = self.alpha_bar_prev**0.5 * self.beta / (1 - self.alpha_bar)
        of_noisy = (1 - self.beta) ** 0.5 * (1 - self.alpha_bar_prev) / (1 - self.alpha_bar)
        return of_clean * clean + of_noisy * noisy


@dataclass(frozen=True)
class Schedule:
    """The share of the clean latents' variance at every time, (times,) float64."""

    alphas_bar: Tensor

    def steps(self, number: int) -> list[Step]:
        """So many times, evenly from 0 to the last, ascending.

        Raises UserError for more than there are.
        """
        most = len(self.alphas_bar)
        if not 2 <= number <= most:
            raise UserError(
                f"objective.steps must lie within 2 and the {most} times of the schedule, got "
                f"{number}."
            )
        times = torch.linspace(0, most - 1, number, dtype=torch.float64).round().long().tolist()
        steps = []
        after = 1.0
        for time in times:
            alpha_bar = float(self.alphas_bar[time])
            steps.append(Step(time, alpha_bar, after))
            after = alpha_bar
        return steps


def load_schedule(pipeline: str | None) -> Schedule:
    """The schedule in the folder of a pipeline, or the one that DiT was trained with.

    Raises UserError for one whose denoiser says something else than the noise.
    """
    kind = library("diffusers").DDPMScheduler
    scheduler = kind(num_train_timesteps=1000, beta_schedule="linear")
    if pipeline is not None and (Path(pipeline).expanduser() / "scheduler").is_dir():
        scheduler = from_folder(kind, pipeline, "scheduler")
    if scheduler.config.prediction_type != "epsilon":
        raise UserError(
            f"The denoiser in {pipeline} was trained to say {scheduler.config.prediction_type}, "
            "and only those that say the noise (epsilon) are sampled; name another."
        )
    return Schedule(torch.cumprod(1 - scheduler.betas.double(), 0))
