"""AT-BPTT's windows (Li et al., NeurIPS 2025), which go by the gradients of a training.

A probe trains another student for all T steps and says the norms n_t of its gradients. Windows
begin where these are large, then anywhere, and late in the training at last. Stages end when the
trained students have not become better by enough for long enough.
"""

import math
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
    """Windows of W - d to W + d steps in three stages of distillation.

    First they begin where gradients are large, and are the longer the more these change there; then
    they begin anywhere, and are long; then they are short and late. A block of `every` outer steps
    is calm when the accuracy of its students on their real batches is less than a gain above that
    of the block before; so many calm blocks in a row end a stage. Differs from the released
    program: windows that begin before the first step begin at it; and a block is judged as one of
    its stage alone, where the program judges the last of the first stage as one of the second too.
    """

    size: int  # W
    spread: int  # d
    every: int = 1  # outer steps that share a window; published: an epoch of real batches
    early_gain: float = 0.015  # in accuracy, below which a block of the first stage is calm
    early_calm: int = 30  # calm blocks that end the first stage; published: 0.15 T
    middle_gain: float = 0.01  # the same of the second stage
    # calm blocks that end the second stage; published: 0.125 T; None: it never ends, which is where
    # the released program stays when 0.125 T is no whole number
    middle_calm: int | None = 25

    def __post_init__(self) -> None:
        for name in ("size", "every", "early_calm", "middle_calm"):
            require_at_least(f"objective.window.{name}", getattr(self, name))
        for name in ("early_gain", "middle_gain"):
            gain = getattr(self, name)
            require(
                math.isfinite(gain),
                f"objective.window.{name} must be a finite difference of accuracies, got {gain}.",
            )
        require(
            0 <= self.spread < self.size,
            f"objective.window.spread must be at least 0 and below size {self.size}, got "
            f"{self.spread}.",
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
        """The stage, what has been seen of it, and the window that is shared."""
        return {
            "stage": torch.zeros(2, dtype=torch.int64),  # 0 to 2; calm blocks in a row
            # of the block: the sum of accuracies, their number; the mean of the block before
            "accuracy": torch.zeros(3, dtype=torch.float64),
            **room_for_a_plan(self.every),
        }

    def plan(self, state: State, step: int, num_steps: int, probe: Probe, rng: Generator) -> Plan:
        """By the stage."""
        stage = int(state["stage"][0])

        def planned() -> Plan:
            if stage == 1:
                end = num_steps - self.longest + 1
                return Plan(int(torch.randint(end, (1,), generator=rng)), self.longest)
            norms = probe(True)
            uniform = float(torch.rand((), generator=rng, dtype=torch.float64))
            at = position(norms, uniform)
            if stage == 0:
                return early(norms, at, self.size, self.spread)
            return late(num_steps, at, self.size, self.spread)

        return kept_plan(state, step, self.every, planned)

    def judged(self, state: State, accuracy: Tensor) -> None:
        """Count calm blocks, and go on to the next stage after enough of them."""
        total, count, before = state["accuracy"].tolist()
        total += float(accuracy)
        count += 1
        if count < self.every:
            state["accuracy"] = torch.tensor([total, count, before]).double()
            return
        mean = total / count
        state["accuracy"] = torch.tensor([0.0, 0.0, mean]).double()
        stage, calm = state["stage"].tolist()
        gain = (self.early_gain, self.middle_gain, 0.0)[stage]
        calm = calm + 1 if mean - before < gain else 0
        if stage < 2 and calm == (self.early_calm, self.middle_calm)[stage]:
            stage, calm = stage + 1, 0
        state["stage"] = torch.tensor([stage, calm])

    def small(self) -> Self:
        """Of one to three steps, and of two blocks a stage at most."""
        spread = min(self.spread, 1)
        every = min(self.every, 2)
        return replace(
            self, size=1 + spread, spread=spread, every=every, early_calm=2, middle_calm=2
        )
