"""What a method is to the engine: its configuration, and the objective that it builds."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Generator, Tensor, nn

from ddengine.data import RealSet
from ddengine.learning.flat import FlatModel
from ddengine.sets.synthetic import SyntheticSet
from ddengine.types import Experts, Method


@dataclass(frozen=True)
class Env:
    """Everything an objective may touch. There is no validation and no test split in it."""

    real: RealSet
    new_model: Callable[[Generator], nn.Module]
    model: FlatModel
    experts: Experts | None
    device: torch.device
    compile: bool = False


class Objective(Protocol):
    """A synthesizer: what the stored tensors should minimise."""

    def init(self, rng: Generator) -> dict[str, Tensor]:
        """Everything kept between steps (a network, a pool). Checkpointed; {}, the default, for
        most.
        """
        return {}

    def losses(
        self, syn: SyntheticSet, state: dict[str, Tensor], step: int, rng: Generator
    ) -> Iterator[Tensor]:
        """Scalar losses of one step.

        The loop calls backward() on each at once, so only one graph is alive.
        """
        ...


class ObjectiveConfig(Method, Protocol):
    """A method's frozen dataclass of options, which subclasses this and overrides what differs.

    Only `build` has no default.
    """

    def small(self) -> Self:
        """The same method at the size of a test: batches of 8 images, few inner steps, segments
        within four epochs; itself where nothing is large.
        """
        return self

    def build(self, env: Env) -> Objective:
        """The objective. Raises UserError for what it cannot work with."""
        ...

    def initial(self) -> dict[str, float]:
        """Scalars that are learned beside the images, with their start; {} for none."""
        return {}

    def check(self, epochs: Sequence[int]) -> None:
        """Raise UserError unless experts with these epochs stored, ascending, will do."""

    def check_teacher(self, name: str, teacher: nn.Module) -> None:
        """Raise UserError for a network, called `name`, that cannot be a teacher; it is not
        trained yet.
        """
