"""What is asked of experts that lie in stores, and of where experts and teachers lie.

These are base classes: what lies elsewhere than in the stores of `buffers` subclasses them and says
what it can. Opened experts without a store need not: they are `types.Experts`, and say nothing.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Generator, nn

from ddengine.data import Data, Preprocess
from ddengine.learning.teachers import load_all
from ddengine.recipe import DataConfig, Recipe
from ddengine.system.log import Progress
from ddengine.system.runtime import Precision
from ddengine.types import Experts, ExpertStep, Json, Meta


class StoredExperts(ABC):
    """Experts that know where they come from; they are `Experts` too."""

    @abstractmethod
    def identities(self) -> Sequence[Json]:
        """What decides the content of each store."""

    @abstractmethod
    def preprocesses(self) -> Sequence[Preprocess | None]:
        """What the experts of each store saw their images through."""

    @abstractmethod
    def fingerprints(self) -> Sequence[str]:
        """The digest of each identity."""

    @abstractmethod
    def origin(self, recipe: Recipe, images: str, precision: str) -> str | None:
        """What says which experts these are, beside recipe and run.

        None for those that follow from the recipe, the digest of the training images and the
        precision.
        """

    @abstractmethod
    def summary(self) -> Json:
        """Number and training time of the experts, for meta.json."""

    def place(self) -> Path | None:
        """The folder that keeps what is computed of the experts once; None where there is none."""
        return None


class OwnTraining(ExpertStep, ABC):
    """The options of experts that are no classifiers: they say their network, and train it.

    Of such experts there is one, whose last state is stored.
    """

    @property
    @abstractmethod
    def network(self) -> str:
        """What the network is called in stores and messages."""

    @abstractmethod
    def new_model(self, data: Data, rng: Generator) -> nn.Module:
        """The network for these images as it starts.

        What others have trained is no parameter of it. Raises UserError for images that do not go.
        """

    @abstractmethod
    def train(
        self, network: nn.Module, data: Data, seed: int, folder: Path, precision: Precision
    ) -> Json:
        """Train the network, which lies on the device of the images; returns what was measured.

        `folder` is that of the store. Checkpoints in it continue a training that was killed, to
        the bit.
        """

    @abstractmethod
    def clean(self, folder: Path) -> None:
        """Delete the checkpoints in the folder of the store, once the expert is stored."""

    @abstractmethod
    def seconds(self, network: nn.Module, data: Data) -> float:
        """How long the training takes about, from a few updates of each part."""

    def bytes_beside(self, network: nn.Module, data: Data) -> int:
        """Bytes of the files that it leaves beside the store, for these images."""
        return 0

    def files(self) -> str | None:
        """The digest of the files that are read beside the images; None where there are none."""
        return None


class TeacherSource(ABC):
    """Where the teachers of a set lie."""

    @abstractmethod
    def teachers(
        self, meta: Meta, data: Data, device: torch.device, *, dynamic: bool
    ) -> Sequence[nn.Module]:
        """The networks; none of a set without. Raises UserError for dynamic labels without.

        `meta` is the content of meta.json, which says what the set was made with.
        """


class ExpertMaker(TeacherSource):
    """What makes and opens the experts of any recipe."""

    @abstractmethod
    def source(self, recipe: Recipe, precision: Precision) -> "ExpertSource":
        """Where the experts of a recipe lie."""

    @abstractmethod
    def make(
        self,
        data: Any,
        recipe: Recipe,
        *,
        device: str,
        precision: Precision,
        progress: Progress,
    ) -> None:
        """Train the experts of a recipe that are missing. Raises UserError where that fails.

        `data` are images as `ddengine.distill` takes them.
        """


@dataclass(frozen=True)
class AtOnce:
    """How many experts that are missing are trained at a time, and each on how many threads."""

    experts: int = 1
    threads: int | None = None  # None: on those that there are
    cores: int | None = None  # on which they take turns; None: each has one, or more
    # of experts that are one computation: how many times as long as one expert alone all that are
    # missing take; None: each is a computation of its own
    as_one: float | None = None


class ExpertSource(TeacherSource):
    """Where the experts of a recipe lie; they are opened when they are needed.

    Only `open` has no default.
    """

    @abstractmethod
    def open(self, data: Data) -> Experts | None:
        """The experts. Raises UserError for experts that are missing or made otherwise."""

    def on(self, data: DataConfig) -> Self:
        """Where those lie that saw other images; the same where that is looked at by `open`."""
        return self

    def seed(self) -> int | None:
        """That the experts were trained with; None where nobody knows one."""
        return None

    def of_seed(self, seed: int) -> "ExpertSource | None":
        """Where those lie that were trained with another seed; None where there are no others."""
        return None

    def preprocess(self, images: str) -> Preprocess | None:
        """What the experts of images with this digest saw them through; None without experts."""
        return None

    def origin(self, images: str) -> str | None:
        """As that of StoredExperts."""
        return None

    @property
    def trainer(self) -> Callable[..., Any] | None:
        """What trains an expert that is missing; None where none can be."""
        return None

    def missing(self, images: str) -> dict[str, int]:
        """How many experts the store of each network lacks."""
        return {}

    def at_once(self, data: Data) -> AtOnce:
        """How many experts that are missing would be trained at a time here."""
        return AtOnce()

    def teachers(
        self, meta: Meta, data: Data, device: torch.device, *, dynamic: bool
    ) -> Sequence[nn.Module]:
        """The last networks of the experts, whatever the set says."""
        experts = self.open(data)
        return [] if experts is None else load_all(experts, device)
