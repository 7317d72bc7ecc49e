"""Sets that are chosen and not optimised: what `init` chooses is the result.

RDED (Sun et al., CVPR 2024, arXiv 2312.03526).
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Generator, Tensor

from ddengine.objective import Env, Objective, ObjectiveConfig
from ddengine.sets.synthetic import SyntheticSet


@dataclass(frozen=True, kw_only=True)
class NoObjective(ObjectiveConfig):
    """Nothing to minimise: for `outer.steps` 0."""

    @property
    def reads_labels(self) -> bool:
        """Nothing is read."""
        return False

    @property
    def optimises(self) -> bool:
        """Nothing is minimised."""
        return False

    def cost(self, env: Env, syn: SyntheticSet) -> int:
        """There is no step."""
        return 0

    def build(self, env: Env) -> "NoLosses":
        """An objective without losses."""
        return NoLosses()


class NoLosses(Objective):
    """Yields no loss."""

    def losses(
        self, syn: SyntheticSet, state: dict[str, Tensor], step: int, rng: Generator
    ) -> Iterator[Tensor]:
        """None."""
        yield from ()
