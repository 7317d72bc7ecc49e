"""Windows that go by the gradients of a training: AT-BPTT and AT-BPTT++.

A probe trains a student for all T steps and says the norms n_t of its gradients. AT-BPTT (NeurIPS
2025) plans in three stages: windows begin where gradients are large, anywhere, and late in the
training. AT-BPTT++ (preprint) chooses where a window ends, by a policy that it keeps.
"""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Generator, Tensor

from ddengine.recipe import require, require_at_least
from synth.windows import Plan, Probe, State, Window, kept_plan, room_for_a_plan


def position(norms: Tensor, uniform: float) -> int:
    """The step drawn from softmax(n) of norms (T,), by a number in [0, 1)."""
    shares = norms.double().softmax(0).cumsum(0)
    drawn = int((shares < uniform).sum())
    return min(drawn, len(norms) - 1)


def early(norms: Tensor, at: int, size: int, spread: int) -> Plan:
    """A window that begins at step `at`, the longer the more the norm changes there."""
    num_steps = len(norms)
    changes = norms.diff(prepend=norms[:1]).abs()
    rank = int((changes < changes[at]).sum())
    chosen = int(size - spread + 2 * spread * rank / num_steps)
    return Plan(min(at, num_steps - chosen), chosen)


def late(num_steps: int, at: int, size: int, spread: int) -> Plan:
    """A short window that begins as far before the end as step `at` is from the start."""
    chosen = size - spread
    return Plan(max(num_steps - at - chosen, 0), chosen)


@dataclass(frozen=True, kw_only=True)
class Stages(Window):
    """AT-BPTT's windows of W - d to W + d steps, in three stages of outer steps.

    First they begin where gradients are large, and are the longer the more these change there; then
    they begin anywhere, and are long; then they are short and late. Where they begin in the third
    stage is not less than 0, as in the released program without saying so.
    """

    size: int  # W
    spread: int  # d
    middle_from: int  # the outer step at which the second stage begins
    late_from: int  # the outer step at which the third stage begins
    every: int = 1  # outer steps that share a window; published: an epoch of real batches

    def __post_init__(self) -> None:
        require_at_least("objective.window.size", self.size)
        require_at_least("objective.window.every", self.every)
        require(
            0 <= self.spread < self.size,
            f"objective.window.spread must be at least 0 and below size {self.size}, got "
            f"{self.spread}.",
        )
        require(
            0 <= self.middle_from <= self.late_from,
            f"objective.window must have 0 <= middle_from <= late_from, got {self.middle_from} "
            f"and {self.late_from}.",
        )

    @property
    def cites(self) -> tuple[str, ...]:
        """Works to cite."""
        return ("li2025atbptt",)

    @property
    def longest(self) -> int:
        """W + d."""
        return self.size + self.spread

    def state(self, num_steps: int) -> State:
        """The window that is shared."""
        return room_for_a_plan(self.every)

    def plan(self, state: State, step: int, num_steps: int, probe: Probe, rng: Generator) -> Plan:
        """By the stage of the outer step; the probe trains another student."""

        def planned() -> Plan:
            if self.middle_from <= step < self.late_from:
                end = num_steps - self.longest + 1
                return Plan(int(torch.randint(end, (1,), generator=rng)), self.longest)
            norms = probe(True)
            uniform = float(torch.rand((), generator=rng, dtype=torch.float64))
            at = position(norms, uniform)
            if step < self.middle_from:
                return early(norms, at, self.size, self.spread)
            return late(num_steps, at, self.size, self.spread)

        return kept_plan(state, step, self.every, planned)

    def small(self) -> Self:
        """Of one to three steps, two outer steps each stage."""
        spread = min(self.spread, 1)
        return replace(
            self,
            size=1 + spread,
            spread=spread,
            middle_from=2,
            late_from=4,
            every=min(self.every, 2),
        )


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
        return ("li2025atbptt", "atbpttplus2026")

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
