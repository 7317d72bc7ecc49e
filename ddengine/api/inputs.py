"""What the public functions are given: images, recipes, precisions, folders."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ddengine.api.results import Distilled, load
from ddengine.artefact.runs import RUNS, is_set
from ddengine.data import Data, Dataset, Preprocess, load_data
from ddengine.data.stored import GIVEN, check_numbers
from ddengine.data.torch_dataset import OWN
from ddengine.recipe import DataConfig, Recipe, resolved
from ddengine.sets.synthetic import SyntheticSet
from ddengine.system.configs import digest
from ddengine.system.errors import UserError

Images = Any  # a Dataset, a torch Dataset, a pair of tensors, a path, or None: what the recipe says
AUTO = "auto"  # the folder that the command line would choose


@dataclass(frozen=True)
class Source:
    """Where the images of a run come from: what the recipe says, or a Dataset in its place."""

    config: DataConfig
    dataset: Dataset | None = None
    preprocess: Preprocess | None = None  # in place of what is stored or fitted to the images

    @property
    def is_own(self) -> bool:
        """Whether these are images that Python holds, which have no name."""
        return self.dataset is not None and self.dataset.name == OWN

    def load(
        self,
        device: torch.device,
        stored: Callable[[str], Preprocess | None] = lambda digest: None,
        *,
        test: bool = False,
    ) -> Data:
        """The splits on `device`; `stored` gives the preprocessing of a digest of images."""
        if self.preprocess is not None:
            stored = self._given
        if self.dataset is None:
            return load_data(self.config, device, test=test, stored=stored)
        return self.dataset.load(self.config, device, stored, test=test)

    def _given(self, digest: str) -> Preprocess | None:
        """The preprocessing that the caller gave, whatever the images are."""
        return self.preprocess


def preprocess_of(given: Any, config: DataConfig) -> Preprocess | None:
    """The preprocessing that a caller gave as itself, or by a set or images that have it.

    Images are read by the data settings of a recipe, `config`. Raises UserError for numbers that no
    images can be fitted to, and where it whitens images and the recipe does not, or the other way
    round.
    """
    if given is None:
        return None
    preprocess = _preprocess_in(given, config)
    preprocess = replace(preprocess.to(torch.device("cpu")), origin=GIVEN)
    check_numbers(preprocess)
    whitens = preprocess.matrix is not None
    if whitens != config.zca:
        kind = "whitens images" if whitens else "is of a mean and a standard deviation"
        raise UserError(
            f"preprocess= {kind}, and data.zca of the recipe is {config.zca}; set it to {whitens}."
        )
    return preprocess


def _preprocess_in(given: Any, config: DataConfig) -> Preprocess:
    """What a set is seen through, or what is fitted to images as data settings split them."""
    if isinstance(given, Preprocess):
        return given
    if isinstance(given, str | Path) and is_set(Path(given)):
        given = load(given)
    if isinstance(given, Distilled | SyntheticSet):
        return given.preprocess
    # probe: whatever a user gives
    if not isinstance(given, str | Path | Dataset) and not hasattr(given, "__getitem__"):
        raise UserError(
            f"preprocess= is a {type(given).__name__}; give a ddengine.Preprocess, a set, or "
            "images that it is fitted to."
        )
    dataset = dataset_of(given)
    assert dataset is not None
    return dataset.load(config, torch.device("cpu")).train.preprocess


def dataset_of(data: Images) -> Dataset | None:
    """What a user gave as images as a Dataset; None where the recipe is to say it.

    A path is that of a folder of parquet files where it holds any, else of a folder of images.
    """
    if data is None or isinstance(data, Dataset):
        return data
    if isinstance(data, str | Path):
        holds_parquet = Path(data).suffix == ".parquet" or any(Path(data).rglob("*.parquet"))
        return Dataset.parquet(data) if holds_parquet else Dataset.folder(data)
    return Dataset.of(data)


def pointed_at(recipe: Recipe, dataset: Dataset | None) -> tuple[Recipe, Source]:
    """The recipe with the data settings of these images, and where they come from.

    Without a published figure where they are others than its own.
    """
    if dataset is None:
        return recipe, Source(recipe.data)
    config = dataset.settings(recipe.data)
    other = replace(recipe, data=config)
    if dataset.name == OWN:
        note = f"{recipe.name} on images of another source, for which nothing is published."
        other = replace(other, published=None, note=note)
    elif recipe.published is not None and resolved(other) != resolved(recipe):
        note = f"{recipe.name} with other settings, for which nothing is published."
        other = replace(other, published=None, note=note)
    return other, Source(config, dataset)


def default_folder(name: str, identity: dict[str, Any]) -> Path:
    """runs/NAME-HASH: where the command line keeps what has this identity."""
    return RUNS / f"{name.replace('/', '-')}-{digest(identity)}"
