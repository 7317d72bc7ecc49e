"""Shared vocabulary: the shape legend, and what the parts of the engine may assume of each other.

Shape legend, used in every docstring (as a suffix where a function juggles several):

    S stored items   N decoded training examples   B batch   K classes   C,H,W image   P flat parameters   Q flat buffers
    T inner steps    E expert epochs (E+1 snapshots)   D features   M teachers   G compensator groups   R ranks
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import torch
from torch import Generator, Tensor, nn

if TYPE_CHECKING:
    from ddengine.data import RealSet
    from ddengine.learning.flat import FlatModel
    from ddengine.sets.synthetic import SyntheticSet

TargetKind = Literal["class", "logits", "features"]  # int64 (N,) | float (N, K) | float (N, D)
Backprop = Literal["full", "replay", "detached"]


@dataclass(frozen=True)
class Batch:
    """Training examples ready for a network.

    Unpacks into images and targets, which is all that most want.
    """

    images: Tensor  # (B, C, H, W), preprocessed
    targets: Tensor  # (B,) int64 classes, or (B, K) logits
    # (B,) int64, what hard terms of a loss use beside soft targets; None: the targets are classes,
    # or none are known
    classes: Tensor | None = None

    def __iter__(self) -> Iterator[Tensor]:
        """Images and targets."""
        return iter((self.images, self.targets))


class TrainingSet(Protocol):
    """Anything a network can be trained on: real data, a distilled set, a selection."""

    def __len__(self) -> int:
        """Number of training examples."""
        ...

    def batch(self, index: Tensor) -> Batch:
        """The examples at `index` (B,)."""
        ...


class Experts(Protocol):
    """What an objective may assume of an expert buffer."""

    @property
    def num_experts(self) -> int:
        """Finished experts."""
        ...

    @property
    def num_params(self) -> int:
        """P."""
        ...

    @property
    def epochs(self) -> Sequence[int]:
        """Epochs whose snapshots are stored, ascending; 0 is the initialisation."""
        ...

    def snapshots(self, expert: int, epochs: Sequence[int]) -> Tensor:
        """Parameters (len(epochs), P), float32, reading those rows only."""
        ...

    def load(self, expert: int, epoch: int) -> nn.Module:
        """The network of that snapshot, BatchNorm buffers included, in evaluation mode."""
        ...


@dataclass(frozen=True)
class Env:
    """Everything an objective may touch. There is no validation and no test split in it."""

    real: "RealSet"
    new_model: Callable[[Generator], nn.Module]
    model: "FlatModel"
    experts: Experts | None
    device: torch.device
    compile: bool = False


class Objective(Protocol):
    """A synthesizer: what the stored tensors should minimise."""

    def init(self, rng: Generator) -> dict[str, Tensor]:
        """Everything kept between steps (a network, a pool). Checkpointed; {} for most."""
        ...

    def losses(
        self, syn: "SyntheticSet", state: dict[str, Tensor], step: int, rng: Generator
    ) -> Iterator[Tensor]:
        """Scalar losses of one step.

        The loop calls backward() on each at once, so only one graph is alive.
        """
        ...
