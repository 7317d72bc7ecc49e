"""DATM: difficulty-aligned trajectory matching. Guo et al., ICLR 2024, arXiv 2310.05773.

What it adds to trajectory matching, and where: the growing window here; `init.kind` correct;
`targets.kind` logits, learned by `outer.optim`; the update gate `outer.max_loss`; experts of
`buffers.flat_step`.
"""

from dataclasses import dataclass
from typing import ClassVar

from ddengine.recipe import require


@dataclass(frozen=True, kw_only=True)
class GrowingWindow:
    """Sequential generation: easy segments first (section 3.2).

    The end of the window moves from `first` to `high` over `grow` outer steps.
    """

    cites: ClassVar[tuple[str, ...]] = ("guo2024datm",)
    low: int = 0  # T-, first start epoch
    first: int  # T, one past the last start epoch at the first step
    high: int  # T+, one past the last start epoch in the end
    grow: int  # outer steps until the window is at its widest

    def __post_init__(self) -> None:
        require(
            0 <= self.low < self.first <= self.high,
            (
                f"objective.window must have 0 <= low < first <= high, got low {self.low}, first "
                f"{self.first} and high {self.high}."
            ),
        )
        require(
            self.grow >= 1,
            (
                f"objective.window.grow must be at least 1, got {self.grow}; first = high does "
                "not grow."
            ),
        )

    def small(self) -> "GrowingWindow":
        """From the first epoch to the first two, in four outer steps."""
        return GrowingWindow(first=1, high=2, grow=4)

    def __call__(self, step: int) -> tuple[int, int]:
        """(low, high) at an outer step."""
        return self.low, min(self.high, self.first + (self.high - self.first) * step // self.grow)

    @property
    def last(self) -> int:
        """The latest start epoch over the whole run."""
        return self.high - 1
