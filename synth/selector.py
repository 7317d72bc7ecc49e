"""AT-BPTT++'s windows (a preprint of 2026): a policy chooses where a window ends.

A probe trains the very student of the step for all T steps first, and says the norms n_t of its
gradients.
"""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Generator, Tensor

from ddengine.recipe import require, require_at_least
from synth.windows import Plan, Probe, State, Window


def standardised(values: Tensor) -> Tensor:
    """Values (T,) of mean 0 and deviation 1."""
    return (values - values.mean()) / (values.std(correction=0) + 1e-8)


@dataclass(frozen=True, kw_only=True)
class Selector(Window):
    """AT-BPTT++'s windows of W - r to W + r steps, whose last step a policy chooses.

    The policy is the one kept, times exp(beta n), where n are the norms of this student's training,
    standardised; beta goes from -1 to 1 with their mean, within the means so far. The window is the
    longer the more the norm changes at its end. Without the paper's change of the inner gradient.
    """

    size: int  # W
    radius: int  # r
    mix: float = 0.05  # share of the new policy in the one that is kept
    temperature: float = 1.0  # of changes of norms, by which windows are long or short

    def __post_init__(self) -> None:
        require_at_least("objective.window.size", self.size)
        require(
            0 <= self.radius < self.size,
            f"objective.window.radius must be at least 0 and below size {self.size}, got "
            f"{self.radius}.",
        )
        require(
            0 <= self.mix <= 1,
            f"objective.window.mix is a share and must lie within 0 and 1, got {self.mix}.",
        )
        require(
            self.temperature > 0,
            f"objective.window.temperature must be positive, got {self.temperature}.",
        )

    @property
    def cites(self) -> tuple[str, ...]:
        """Works to cite."""
        return ("li2025atbptt",)

    @property
    def longest(self) -> int:
        """W + r."""
        return self.size + self.radius

    def state(self, num_steps: int) -> State:
        """The policy, uniform, and the least and the largest mean norm so far."""
        even = torch.full((num_steps,), 1 / num_steps, dtype=torch.float64)
        return {"policy": even, "means": torch.tensor([torch.inf, -torch.inf]).double()}

    def plan(self, state: State, step: int, num_steps: int, probe: Probe, rng: Generator) -> Plan:
        """By the norms of this step's student."""
        norms = probe(False).double().cpu()
        policy = self.policy(state, norms)
        end = int(torch.multinomial(policy, 1, generator=rng))
        return self.ending(norms, end)

    def policy(self, state: State, norms: Tensor) -> Tensor:
        """The probabilities (T,) of the last step; updates the state."""
        means = state["means"].cpu()
        mean = norms.mean()
        low = torch.minimum(means[0], mean)
        high = torch.maximum(means[1], mean)
        beta = torch.ones_like(mean)
        if high > low:
            beta = 2 * (mean - low) / (high - low) - 1
        kept = state["policy"].cpu()
        policy = (kept.log() + beta * standardised(norms)).softmax(0)
        state["policy"] = kept.lerp(policy, self.mix)
        state["means"] = torch.stack([low, high])
        return policy

    def ending(self, norms: Tensor, end: int) -> Plan:
        """The window whose last step is `end`."""
        changes = standardised(norms.diff(prepend=norms[:1]).abs())
        share = float((changes[end] / self.temperature).sigmoid())
        chosen = round(self.size - self.radius + 2 * self.radius * share)
        chosen = min(chosen, end + 1)
        return Plan(end + 1 - chosen, chosen)

    def small(self) -> Self:
        """Of one to three steps."""
        radius = min(self.radius, 1)
        return replace(self, size=1 + radius, radius=radius)
