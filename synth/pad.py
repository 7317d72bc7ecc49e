"""Which parameters trajectory matching compares. PAD, Li et al., arXiv 2408.03360.

PAD leaves the shallow layers out of both sums of the loss. Its released program (commit 2a4bc91 of
NUS-HPC-AI-Lab/PAD) leaves out the parameters that are nearest to the expert's instead, of any
layer, and does not run as it stands.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ddengine.recipe import require


class Coordinates(Protocol):
    """A frozen dataclass that subclasses this and chooses parameters of each comparison."""

    @property
    def cites(self) -> tuple[str, ...]:
        """Works to cite."""
        return ("li2024pad",)

    def __call__(self, errors: Tensor) -> Tensor:
        """Which of the parameters count (n,), by their squared errors (P,)."""
        ...


def _check_drop(drop: float) -> None:
    """Raise UserError for a share that leaves nothing to compare."""
    require(
        0 <= drop < 1,
        f"objective.coordinates.drop must be at least 0 and below 1, got {drop}; it is the share "
        "that is left out.",
    )


@dataclass(frozen=True, kw_only=True)
class DeepLayers(Coordinates):
    """All but the first parameters in the order of the layers (as the paper has it)."""

    drop: float  # share of the parameters that is left out; published: 0, 0.25 or 0.5

    def __post_init__(self) -> None:
        _check_drop(self.drop)

    def __call__(self, errors: Tensor) -> Tensor:
        """The last ones."""
        num = len(errors)
        return torch.arange(int(self.drop * num), num, device=errors.device)


@dataclass(frozen=True, kw_only=True)
class LargestErrors(Coordinates):
    """All but the parameters with the smallest squared errors (as the released program has it)."""

    drop: float  # share of the parameters that is left out

    def __post_init__(self) -> None:
        _check_drop(self.drop)

    def __call__(self, errors: Tensor) -> Tensor:
        """Those of the largest errors."""
        num = len(errors)
        return errors.topk(num - int(self.drop * num)).indices
