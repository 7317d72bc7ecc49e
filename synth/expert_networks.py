"""Networks for `synth.networks` that come from the training of experts, with one that judges.

TGDD (Ran et al., AAAI 2026, at commit 39ac9c2 of FlyFinley/TGDD) compares features in a snapshot
of an expert and asks a later snapshot of it which class it sees. NCFM (Wang et al., CVPR 2025, at
commit de92fb8 of gszfwsb/NCFM) compares them between an expert's start and its end, and asks the
end.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Generator, Tensor

from ddengine.objective import Env
from ddengine.recipe import require_at_least
from ddengine.sets.synthetic import SyntheticSet
from ddengine.system.errors import UserError
from ddengine.system.runtime import sent
from ddengine.types import Experts
from synth.networks import Networks, OuterStep


def judge_window(start: int, interval: int, last: int) -> tuple[int, int]:
    """(lowest, highest) epoch that the judge of an extractor at epoch `start` is drawn from.

    Of epochs 0..last; both are included.
    """
    return start, min(start + interval - 1, last)


def blended(first: Tensor, last: Tensor, share: Tensor | float) -> Tensor:
    """Parameters (P,) on the way, share * first + (1 - share) * last."""
    return share * first + (1 - share) * last


class ExpertNetworks(Networks, Protocol):
    """Networks of experts, drawn anew for each outer step; nothing is kept of them."""

    @property
    def reads_experts(self) -> bool:
        """Whose snapshots they are."""
        return True

    @property
    def judges(self) -> bool:
        """The same expert, further on."""
        return True

    def draw(self, experts: Experts, rng: Generator) -> tuple[Tensor, Tensor]:
        """The parameters (P,) that features are compared in, and those of the judge."""
        ...

    def next(self, at: OuterStep) -> Tensor:
        """The first of the two."""
        theta, _ = self.with_judge(at)
        return theta

    def with_judge(self, at: OuterStep) -> tuple[Tensor, Tensor | None]:
        """Both, on the device. Raises UserError where there are no experts of this network."""
        theta, judge = self.draw(experts_of(at.env), at.rng)
        return sent(theta, at.env.device), sent(judge, at.env.device)

    def round(self, syn: SyntheticSet, step: int) -> tuple[int, int]:
        """(step, 0)."""
        return step, 0


def experts_of(env: Env) -> Experts:
    """The experts. Raises UserError where there are none, or they are of another network."""
    if env.experts is None:
        raise UserError(
            "objective.networks are snapshots of experts, and there are none; give the recipe a "
            "buffer (--take buffer=RECIPE) and run the buffer command."
        )
    if env.experts.num_params != env.model.num_params:
        raise UserError(
            f"The experts have {env.experts.num_params} parameters and the model "
            f"{env.model.num_params}; distill with the network of the experts, or make a store for "
            "this one."
        )
    return env.experts


def _expert(experts: Experts, rng: Generator) -> int:
    return int(torch.randint(experts.num_experts, (1,), generator=rng))


@dataclass(frozen=True, kw_only=True)
class Snapshots(ExpertNetworks):
    """An expert after j of its E epochs, 0 <= j <= E, and as the judge after k (TGDD).

    k lies within j..j + interval - 1, and is E at most. All draws are uniform.
    """

    interval: int = 7  # epochs that the judge is drawn from, the extractor's among them

    def __post_init__(self) -> None:
        require_at_least("objective.networks.interval", self.interval)

    @property
    def cites(self) -> tuple[str, ...]:
        """Works to cite."""
        return ("ran2026tgdd",)

    def check(self, epochs: Sequence[int]) -> None:
        """Raise UserError unless there are several epochs, and none is left out between them."""
        if len(epochs) < 2 or list(epochs) != list(range(epochs[0], epochs[-1] + 1)):
            raise UserError(
                "objective.networks draws any epoch of an expert, and the store keeps "
                f"{len(epochs)} epochs from {epochs[0]} to {epochs[-1]}; make one with "
                "buffer.keep all."
            )

    def draw(self, experts: Experts, rng: Generator) -> tuple[Tensor, Tensor]:
        """Two snapshots of an expert."""
        expert, last = _expert(experts, rng), len(experts.epochs) - 1
        start = int(torch.randint(last + 1, (1,), generator=rng))
        lowest, highest = judge_window(start, self.interval, last)
        end = int(torch.randint(lowest, highest + 1, (1,), generator=rng))
        rows = experts.snapshots(expert, [experts.epochs[start], experts.epochs[end]])
        return rows[0], rows[1]


@dataclass(frozen=True, kw_only=True)
class Blended(ExpertNetworks):
    """A random mixture of an expert's first and last parameters, judged by the last (NCFM)."""

    @property
    def cites(self) -> tuple[str, ...]:
        """Works to cite."""
        return ("wang2025ncfm",)

    def check(self, epochs: Sequence[int]) -> None:
        """Raise UserError unless there is a start and an end."""
        if len(epochs) < 2:
            raise UserError(
                "objective.networks mixes the first epoch of an expert with the last, and the "
                f"store keeps epoch {epochs[0]} alone; make one with buffer.keep ends."
            )

    def draw(self, experts: Experts, rng: Generator) -> tuple[Tensor, Tensor]:
        """The mixture, and the last snapshot."""
        expert = _expert(experts, rng)
        first, last = experts.snapshots(expert, [experts.epochs[0], experts.epochs[-1]])
        share = float(torch.rand((), generator=rng))
        return blended(first, last, share), last
