"""The experts of whatever recipe is asked for: made where they are missing, opened where not."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from buffers.open import SetTeachers, Stores
from buffers.own import generate
from ddengine.api.inputs import Images
from ddengine.data import Data
from ddengine.recipe import Recipe
from ddengine.system import log
from ddengine.system.runtime import Precision


@dataclass(frozen=True, kw_only=True)
class ExpertMaker:
    """Makes and opens the experts of any recipe.

    `ddengine.sweep` takes it as its experts, whose settings may be among those that are swept.

        ddengine.sweep(data, recipe, experts=buffers.ExpertMaker(), ...)
    """

    # of the store, and with teachers of their stores, of every recipe; None: experts/FINGERPRINT
    folder: Path | None = None

    def source(self, recipe: Recipe, precision: Precision) -> Stores:
        """Where the experts of a recipe lie."""
        return Stores.of(recipe, precision=precision, folder=self.folder)

    def make(
        self,
        data: Images,
        recipe: Recipe,
        *,
        device: str,
        precision: Precision,
        progress: log.Progress,
    ) -> None:
        """Train the experts of a recipe that are missing. Raises UserError as `generate` does."""
        generate(
            data,
            recipe,
            folder=self.folder,
            device=device,
            precision=precision,
            progress=progress,
        )

    def teachers(
        self, meta: Mapping[str, Any], data: Data, device: torch.device, *, dynamic: bool
    ) -> list[nn.Module]:
        """The teachers of a set, as `SetTeachers` finds them."""
        folder = self.folder if meta["recipe"].get("teachers") else None
        return SetTeachers(folder).teachers(meta, data, device, dynamic=dynamic)
