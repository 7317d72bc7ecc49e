"""What to cite for a recipe: the entries that its method, its parts and its dataset ask for.

Entries of a method lie beside its recipes, as `BIBTEX` in the module of synth/recipes, or in the
module of a part that lies in another package. Those of datasets, and of what no method owns, lie
in references.bib.
"""

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from ddengine import loop
from ddengine.data import DATASETS
from ddengine.data.imagenet import NAMES as IMAGENET
from ddengine.evaluation import protocol
from ddengine.recipe import (
    AugmentConfig,
    EvalConfig,
    InitConfig,
    OuterConfig,
    Recipe,
    TargetConfig,
)
from ddengine.sets import labels, start, thinning
from ddengine.sets.codec import Quantised
from ddengine.system.errors import UserError, unknown
from ddengine.uses import labels as buying
from ddengine.uses import pruning
from ddengine.uses.labels import LabelsConfig
from ddengine.uses.pruning import LOSSES, SELECTIONS, PruningConfig
from synth.catalogue import find, modules

# of the core's configurations: what says the works to cite for one
OF_CONFIGS: dict[type, Callable[[Any], Sequence[str]]] = {
    InitConfig: start.cites,
    TargetConfig: labels.cites,
    OuterConfig: loop.cites,
    EvalConfig: protocol.cites,
}
AUGMENTATION = "zhao2021dsa"
# operations that need no reference where they are always applied
USUAL = ("crop", "flip", "roll", "resized_crop", "shuffle")
# a user's own images have none
DATASET_CITES: dict[str, tuple[str, ...]] = {
    "digits": ("alpaydin1998digits",),
    "mnist": ("lecun1998mnist",),
    "fashion_mnist": ("xiao2017fashion",),
    "svhn": ("netzer2011svhn",),
    "cifar10": ("krizhevsky2009cifar",),
    "cifar100": ("krizhevsky2009cifar",),
    "tiny_imagenet": ("le2015tiny",),
    **dict.fromkeys(IMAGENET, ("deng2009imagenet",)),
}


def by_key(bibtex_text: str) -> dict[str, str]:
    """The entries of a BibTeX text by key, each field on one line."""
    # a field that is broken over several lines goes on deeper than fields begin
    text = re.sub(r"\n {3,}", " ", bibtex_text)
    _, *texts = re.split(r"^(?=@)", text, flags=re.MULTILINE)
    return {entry[entry.index("{") + 1 : entry.index(",")]: entry.strip() for entry in texts}


def _entries_of(module: ModuleType) -> dict[str, str]:
    """The entries that a module has beside its recipes or parts, by key."""
    return by_key(getattr(module, "BIBTEX", ""))  # probe: of modules, most have none


@cache
def entries() -> dict[str, str]:
    """The entries of references.bib and of the modules of synth/recipes by key."""
    known = by_key(Path(__file__).with_name("references.bib").read_text(encoding="ascii"))
    for module in modules():
        known |= _entries_of(module)
    return known


def keys(recipe: Recipe) -> list[str]:
    """Keys of what a recipe uses, each once.

    They come from the method, from parts that say their own in `cites` (CutMix, mixup), from the
    augmentation and the dataset. So a recipe made of several methods' parts cites all of them.
    Raises UserError for a dataset that does not exist.
    """
    if recipe.data.name not in DATASETS:
        raise unknown("dataset", recipe.data.name, DATASETS)
    asked: list[str] = []
    for part in parts(recipe):
        asked.extend(_works(part))
    if any(map(_augments, parts(recipe))):
        asked.append(AUGMENTATION)
    return list(dict.fromkeys([*asked, *DATASET_CITES.get(recipe.data.name, ())]))


def _works(part: Any) -> Sequence[str]:
    """Keys of the works to cite for a part: what is said beside the code that it configures."""
    for config, cites in OF_CONFIGS.items():
        if isinstance(part, config):
            return cites(part)
    # probe: a part of any package may cite works, and few do
    return getattr(part, "cites", ())


def parts(part: Any) -> Iterator[Any]:
    """A configuration and all that lie in it, the outer ones first."""
    if is_dataclass(part):
        yield part
        for field in fields(part):
            yield from parts(getattr(part, field.name))


def _augments(part: Any) -> bool:
    """Whether a part augments as DSA does: draws an operation, or always applies one of its own."""
    return isinstance(part, AugmentConfig) and bool(part.ops or set(part.always) - set(USUAL))


def bibtex(recipe: Recipe | str) -> str:
    """BibTeX of what a recipe uses, or the recipe of that name, in the order of `keys`.

    Raises UserError for a work of which no entry is known, and for an unknown recipe.
    """
    if isinstance(recipe, str):
        recipe = find(recipe)
    known = dict(entries())
    for part in parts(recipe):
        known |= _entries_of(sys.modules[type(part).__module__])
    wanted = keys(recipe)
    for key in wanted:
        if key not in known:
            raise UserError(
                f"The recipe {recipe.name} cites {key!r}, of which there is no entry; put it into "
                "BIBTEX of the module of the recipe or of the part that cites it."
            )
    return "\n\n".join(known[key] for key in wanted) + "\n"


# commands that stand for published work of their own, by what their settings at most cite
OF_COMMANDS: dict[str, Callable[[], Sequence[str]]] = {
    "prune": lambda: pruning.cites(PruningConfig(selections=SELECTIONS, losses=LOSSES)),
    "buy_labels": lambda: buying.cites(LabelsConfig()),
    "quantise": lambda: Quantised.WORKS,
    "thin": lambda: thinning.CITES,
}


def bibtex_of_command(command: str) -> str:
    """BibTeX of all that a command of OF_COMMANDS can use, in the order of its keys."""
    known = entries()
    return "\n\n".join(known[key] for key in OF_COMMANDS[command]()) + "\n"
