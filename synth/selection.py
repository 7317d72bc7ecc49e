"""Sets that are chosen and not optimised (RDED; Sun et al., CVPR 2024, arXiv 2312.03526): what
`init` chooses is the result.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch import Generator, Tensor

from ddengine.sets.synthetic import SyntheticSet
from ddengine.types import Env


@dataclass(frozen=True, kw_only=True)
class NoObjective:
    """Nothing to minimise: for `outer.steps` 0."""

    reads_labels: ClassVar[bool] = False
    optimises: ClassVar[bool] = False

    def initial(self) -> dict[str, float]:
        """Nothing is learned."""
        return {}

    def build(self, env: Env) -> "NoObjective":
        """Itself."""
        return self

    def init(self, rng: Generator) -> dict[str, Tensor]:
        """Nothing is kept."""
        return {}

    def losses(
        self, syn: SyntheticSet, state: dict[str, Tensor], step: int, rng: Generator
    ) -> Iterator[Tensor]:
        """None."""
        yield from ()
