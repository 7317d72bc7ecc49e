"""What all parts of a transfer share."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Generator, nn

from ddengine.data import Data
from ddengine.evaluation import brought
from ddengine.evaluation.bench import SEARCH_SEED
from ddengine.evaluation.brought import Factory
from ddengine.models import ImageShape, build_model
from ddengine.recipe import EvalConfig
from ddengine.sets.synthetic import SyntheticSet
from ddengine.system.configs import digest
from ddengine.system.memo import Memo
from ddengine.system.runtime import Precision
from ddengine.types import Json
from ddengine.uses.pieces import timed
from ddengine.uses.transfer.config import TransferConfig
from ddengine.uses.transfer.images import Downstream


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What decides how a network is tested on another dataset, once it is pre-trained."""

    image_shape: ImageShape  # of the images that networks take
    config: TransferConfig
    seed: int
    device: torch.device
    precision: Precision
    folder: Path  # of pre-trained networks
    identity: str = ""  # of what is remembered, and of these networks
    factories: Mapping[str, Factory] = field(default_factory=dict)  # networks of the user

    def new_model(self, model: str, outputs: int) -> Callable[[Generator], nn.Module]:
        """What makes a network of that name with so many outputs, initialised from a generator."""
        if model in self.factories:
            return partial(brought.build, self.factories[model], self.image_shape, outputs)
        return partial(build_model, model, self.image_shape, outputs)

    @property
    def seeds(self) -> list[int]:
        """Of the networks of a row."""
        return [self.seed + number for number in range(self.config.networks)]

    @property
    def search_seed(self) -> int:
        """Of the network that chooses rates, which is none of those that are reported."""
        return self.seed + SEARCH_SEED

    def path_of(self, start: str, model: str, seed: int) -> Path:
        """The file of a network that was pre-trained, but for its head."""
        name = digest([self.identity, start, model, seed])
        return self.folder / f"{name}.safetensors"


@dataclass(frozen=True, kw_only=True)
class Context(Bench):
    """What all parts of a transfer share."""

    syn: SyntheticSet
    name: str = "distilled"  # of the rows of the set
    source: Data | None  # the images that the set was made of; None: no row needs them
    datasets: Sequence[Downstream]
    pretraining: EvalConfig
    models: Sequence[str]
    home: str  # the network that the set was distilled with, for which it may have learned a rate
    experts: Sequence[nn.Module] = ()  # trained on all source images
    experts_said: str = ""  # what they are, in words
    experts_model: str | None = None  # the name of their network, where it is known
    memo: Memo = field(default_factory=lambda: Memo(None, ""))
    advance: Callable[[str], None] = lambda text: None  # shows what is being done

    def remember(self, key: str, label: str, compute: Callable[[], Json]) -> Json:
        """The result under `key` with the seconds it took, computed when new."""
        known = self.memo.get(key)
        if known is not None:
            return known
        self.advance(label)
        return self.memo(key, partial(timed, compute))
