"""What travels through a comparison: what all its parts share, and one stage of a memory."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from ddengine.data import Data
from ddengine.recipe import EvalConfig, Recipe
from ddengine.sets.synthetic import SyntheticSet
from ddengine.system.rng import generator, seed_from
from ddengine.system.runtime import Precision
from ddengine.uses.continual.config import ContinualConfig
from ddengine.uses.pieces import Pieces

# (data of some classes, recipe, seed, name of the piece) -> set
Distill = Callable[[Data, Recipe, int, str], SyntheticSet]


@dataclass(frozen=True)
class Context:
    """What all parts of a comparison share."""

    data: Data
    recipe: Recipe
    config: ContinualConfig
    protocol: EvalConfig
    distill: Distill
    seed: int
    device: torch.device
    precision: Precision
    pieces: Pieces
    work: Path | None  # folder of distilled pieces and of networks that go on
    identity: str  # of what is remembered
    rates: tuple[float, ...]  # learning rates that are tried

    def seed_of(self, *names: str | int) -> int:
        """A seed for one thing, the same for all memories."""
        return seed_from(generator(self.seed, "continual", *names))


@dataclass(frozen=True)
class Stage:
    """One stage of one repeat with one memory."""

    memory: str
    repeat: int
    number: int
    classes: list[int]  # that come now
    seen: list[int]  # that came so far, these included

    @property
    def key(self) -> str:
        """Names what is remembered of the stage."""
        return f"{self.memory}/{self.repeat}/{self.number}"

    @property
    def label(self) -> str:
        """Names the stage for a person."""
        return f"{self.memory}, repeat {self.repeat + 1}, stage {self.number + 1}"
