"""What all parts of buying labels share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Generator, Tensor, nn

from ddengine.data import RealSet
from ddengine.models import build_model
from ddengine.recipe import EvalConfig
from ddengine.system.rng import generator, seed_from
from ddengine.system.runtime import Precision
from ddengine.types import Batch, TrainingSet
from ddengine.uses.labels.config import LabelsConfig
from ddengine.uses.pieces import Pieces


@dataclass(frozen=True)
class Pool:
    """Points whose labels can be bought."""

    examples: TrainingSet
    classes: Tensor  # (N,) int64 on the CPU: the true ones
    names: Sequence[str]  # of each point
    digest: str  # identifies images and classes

    def __len__(self) -> int:
        return len(self.classes)


class Answered:
    """Some points of a pool with the classes that were answered."""

    def __init__(self, pool: Pool, index: Tensor, classes: Tensor):
        """Index (S,) of the points and classes (S,), on the CPU."""
        self.pool = pool
        self.index = index
        self.classes = classes

    def __len__(self) -> int:
        """Number of points."""
        return len(self.index)

    def batch(self, index: Tensor) -> Batch:
        """The examples at `index` (B,) of these points."""
        index = index.cpu()
        images = self.pool.examples.batch(self.index[index]).images
        return Batch(images, self.classes[index].to(images.device))


@dataclass(frozen=True)
class Context:
    """The pool, the settings, and where finished work is remembered."""

    pool: Pool
    test: RealSet
    validation: RealSet | None
    class_names: tuple[str, ...]
    model: str
    protocol: EvalConfig  # how networks are trained, but for how long
    config: LabelsConfig
    seed: int
    device: torch.device
    precision: Precision
    identity: str = ""
    pieces: Pieces = field(default_factory=Pieces)
    rates: tuple[float, ...] = ()  # learning rates that are tried
    # networks of the first points alone, by repeat, with which all rules begin
    starts: dict[int, nn.Module] = field(default_factory=dict)

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.class_names)

    def seed_of(self, *names: str | int) -> int:
        """A seed for one thing, the same for all rules."""
        return seed_from(generator(self.seed, "labels", *names))

    def builder(self, model: str) -> Callable[[Generator], nn.Module]:
        """What makes new networks of a name."""
        return partial(build_model, model, self.test.image_shape, self.num_classes)
