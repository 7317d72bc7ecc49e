"""Shared vocabulary: the shape legend, and what the parts of the engine may assume of each other.

Shape legend, used in every docstring (as a suffix where a function juggles several):

    S stored items   N decoded training examples   B batch   K classes   C,H,W image
    P flat parameters   Q flat buffers   T inner steps   E expert epochs (E+1 snapshots)
    D features   M teachers   G compensator groups   R ranks
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Self

from torch import Tensor, nn

# int64 (N,) | float (N, K) | float (N, K) | float (N, D)
TargetKind = Literal["class", "logits", "weights", "features"]
Backprop = Literal["full", "replay", "detached"]
# whether the inner training step is compiled; auto: where the steps pay for it
Compile = bool | Literal["auto"]
# auto: replay, which keeps as many graphs as there is memory for, up to all of them
AutoBackprop = Literal["auto", "full", "replay", "detached"]

# Objects of JSON files, by what they hold. Only `Json` may be changed.
Json = dict[str, Any]  # one that is made here, or that is the reader's own
Facts = Mapping[str, Any]  # any other
Meta = Mapping[str, Any]  # meta.json, which says what a set is
Evaluation = Mapping[str, Any]  # evaluation.json
Row = Mapping[str, Any]  # one of its rows: how well networks of a kind trained on a set


@dataclass(frozen=True)
class Batch:
    """Training examples ready for a network.

    Unpacks into images and targets, which is all that most want.
    """

    images: Tensor  # (B, C, H, W), preprocessed
    targets: Tensor  # (B,) int64 classes, or (B, K) logits or weights, or (B, D) features
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

    def snapshots(self, expert: int, epochs: Sequence[float]) -> Tensor:
        """Parameters (len(epochs), P), float32, reading those rows only.

        Epochs that are not whole can be read of convex stores alone.
        """
        ...

    def load(self, expert: int, epoch: int) -> nn.Module:
        """The network of that snapshot, BatchNorm buffers included, in evaluation mode."""
        ...


class Method(Protocol):
    """What a recipe asks of the configuration of an objective.

    A method says otherwise where a default is not true of it. The rest of that configuration is
    `objective.ObjectiveConfig`.
    """

    @property
    def cites(self) -> tuple[str, ...]:
        """Keys of the works to cite for the options in use."""
        return ()

    @property
    def reads_experts(self) -> bool:
        """Whether the objective reads experts or teachers while it distills."""
        return False

    @property
    def follows_experts(self) -> bool:
        """Whether it follows experts of one network through their training.

        So it reads several epochs of each.
        """
        return False

    @property
    def reads_between_epochs(self) -> bool:
        """Whether it reads experts between whole epochs, which convex stores alone can be."""
        return False

    @property
    def reads_labels(self) -> bool:
        """Whether the labels that lie beside the images take part in the loss."""
        return True

    @property
    def target_kinds(self) -> tuple[str, ...]:
        """The kinds of `targets` that can lie beside the images, the usual one first."""
        return ("class", "logits")

    @property
    def makes_labels(self) -> bool:
        """Whether examples are labelled anew at each step, so that the set must be in the end."""
        return False

    @property
    def optimises(self) -> bool:
        """Whether there is anything to minimise, so that outer steps make sense."""
        return True

    @property
    def parts_by_device(self) -> bool:
        """Whether it is left to the device into how many losses a step falls."""
        return False

    @property
    def draws_networks(self) -> bool:
        """Whether it draws new networks while it distills, so that several kinds can take turns.

        Of a network nothing is kept between steps when the next one is drawn.
        """
        return False

    def for_all_teachers(self) -> Self:
        """The method with every image made in all teachers; itself where this is no choice."""
        return self


class ExpertStep(Protocol):
    """What a recipe asks of the configuration of an expert's training step.

    The rest of it belongs to who trains experts.
    """

    @property
    def cites(self) -> tuple[str, ...]:
        """Keys of the works to cite for the options in use."""
        return ()

    @property
    def trains(self) -> bool:
        """Whether experts are trained; False for published weights, which are read."""
        return True

    @property
    def reads_labels(self) -> bool:
        """Whether experts are trained on labels; of others no accuracy is measured either."""
        return True
