"""What all parts of a comparison of pruned data share."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Generator, Tensor, nn

from ddengine.data import Data
from ddengine.models import build_model
from ddengine.recipe import EvalConfig, Recipe
from ddengine.system import files
from ddengine.system.rng import generator, seed_from
from ddengine.system.runtime import Precision
from ddengine.uses.pieces import Pieces
from ddengine.uses.pruning.config import PruningConfig


@dataclass(frozen=True)
class Context:
    """The images, the settings, and where finished work is remembered."""

    data: Data
    recipe: Recipe
    config: PruningConfig
    seed: int
    device: torch.device
    precision: Precision
    folder: Path  # where networks and scores are kept until all is done
    identity: str = ""
    pieces: Pieces = field(default_factory=Pieces)
    rates: tuple[float, ...] = ()  # learning rates that are tried

    @property
    def protocol(self) -> EvalConfig:
        """How networks are trained, but for what they are trained to say."""
        return self.recipe.evaluation

    @property
    def teachers(self) -> tuple[str, ...]:
        """The networks that teach; the first one also judges images."""
        return self.config.teachers or (self.recipe.model,)

    def seed_of(self, *names: str | int) -> int:
        """A seed for one thing."""
        return seed_from(generator(self.seed, "pruning", *names))

    def builder(self, model: str) -> Callable[[Generator], nn.Module]:
        """What makes new networks of a name."""
        return partial(build_model, model, self.data.image_shape, self.data.num_classes)

    def kept_tensors(
        self, name: str, label: str, compute: Callable[[], Mapping[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Tensors that a file of the folder holds, computed and written there when new."""
        self.pieces.show(name, label)
        path = self.folder / f"{name.replace('/', '_')}.safetensors"
        if path.is_file():
            tensors, metadata = files.read_tensors(path)
            if metadata.get("identity") == self.identity:
                return tensors
        begin = time.perf_counter()
        made = dict(compute())
        files.make_folder(self.folder)
        files.write_tensors(path, made, {"identity": self.identity})
        self.pieces.memo.put(f"seconds/{name}", {"seconds": time.perf_counter() - begin})
        return made
