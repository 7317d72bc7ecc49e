"""`select RECIPE [flags]`: the real images that a recipe's init chooses, as a set."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Generic

import tyro

import ddengine
from ddengine.commands.on_recipe import of_recipe, stores_of
from ddengine.commands.options import Machine, OfRecipe, RecipeT, as_kind
from ddengine.commands.process import alone
from ddengine.recipe import BufferT, CodecT, ObjectiveT, Recipe, require
from synth.cite import bibtex


@dataclass(frozen=True, kw_only=True)
class SelectOptions(OfRecipe, Machine, Generic[RecipeT]):
    """Flags of select, then those of the recipe."""

    out: Path | None = None  # folder to write; None: runs/select-KIND-HASH
    # expert store, where the kind of init asks experts; None: experts/FINGERPRINT
    experts: Path | None = None
    restart: bool = False  # begin anew, deleting what the folder holds
    recipe: Annotated[RecipeT, tyro.conf.arg(name=""), tyro.conf.FlagConversionOff]


@dataclass(frozen=True, kw_only=True)
class Selection(Recipe[BufferT, CodecT, ObjectiveT]):
    """A recipe for `select`, which reads its data, ipc, network, init and evaluation.

    And what experts need where the kind of init asks them. The other parts have their flags, so
    that one command line does for `select` and `distill`, and need not fit together.
    """

    def __post_init__(self) -> None:
        require(self.ipc >= 1, f"ipc must be at least 1, got {self.ipc}.")


def main(args: list[str]) -> None:
    """The command."""
    options = of_recipe("select", args, SelectOptions, read=partial(as_kind, Selection))
    if options is None:
        return
    alone("select")
    ddengine.select(
        None,
        options.recipe,
        stores_of(options, options.experts),
        folder=options.out or "auto",
        seed=options.seed,
        device=options.device,
        precision=options.precision,
        restart=options.restart,
        bibtex=bibtex,
        command=options.command,
    )
