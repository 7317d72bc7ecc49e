"""What to cite for a recipe: the entries of references.bib that its method, its parts and its
dataset ask for.
"""

import re
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ddengine.data import DATASETS
from ddengine.data.imagenet import NAMES as IMAGENET
from ddengine.recipe import AugmentConfig, Recipe
from ddengine.system.errors import unknown

AUGMENTATION = "zhao2021dsa"
# operations that need no reference where they are always applied
USUAL = ("crop", "flip", "roll", "resized_crop", "shuffle")
DATASET_CITES: dict[str, tuple[str, ...]] = {
    "digits": ("alpaydin1998digits",),
    "mnist": ("lecun1998mnist",),
    "fashion_mnist": ("xiao2017fashion",),
    "svhn": ("netzer2011svhn",),
    "cifar10": ("krizhevsky2009cifar",),
    "cifar100": ("krizhevsky2009cifar",),
    "tiny_imagenet": ("le2015tiny",),
    **dict.fromkeys(IMAGENET, ("deng2009imagenet",)),
    "folder": (),
    "parquet": (),
    "hub": (),
}


@cache
def entries() -> dict[str, str]:
    """The entries of references.bib by key, as they stand there."""
    _, *found = re.split(
        r"^(?=@)",
        Path(__file__).with_name("references.bib").read_text(encoding="ascii"),
        flags=re.MULTILINE,
    )
    return {entry[entry.index("{") + 1 : entry.index(",")]: entry.strip() for entry in found}


def keys(recipe: Recipe) -> list[str]:
    """Keys of what a recipe uses, each once: method, parts that say their own in `cites` (CutMix,
    mixup), augmentation, dataset.

    So a recipe made of several methods' parts cites all of them. Raises UserError for a dataset
    that does not exist.
    """
    if recipe.data.name not in DATASETS:
        raise unknown("dataset", recipe.data.name, DATASETS)
    augmentation = [AUGMENTATION] if _augmented(recipe) else []
    return list(dict.fromkeys([*_cited(recipe), *augmentation, *DATASET_CITES[recipe.data.name]]))


def _augmented(part: Any) -> bool:
    """Whether anything in it augments as DSA does: draws an operation, or always applies one of its
    own.
    """
    if isinstance(part, AugmentConfig):
        return bool(part.ops or set(part.always) - set(USUAL))
    return is_dataclass(part) and any(_augmented(getattr(part, f.name)) for f in fields(part))


def _cited(part: Any) -> list[str]:
    if not is_dataclass(part):
        return []
    return [
        *getattr(part, "cites", ()),
        *(key for f in fields(part) for key in _cited(getattr(part, f.name))),
    ]


def bibtex(recipe: Recipe) -> str:
    """BibTeX of what a recipe uses, in the order of `keys`.

    Raises KeyError for a key that references.bib lacks.
    """
    return "\n\n".join(entries()[key] for key in keys(recipe)) + "\n"
