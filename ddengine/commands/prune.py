"""`prune RECIPE [flags]`: students on a part of the data, with and without a teacher."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Generic

import tyro

import ddengine
from ddengine.commands import cli
from ddengine.commands.on_recipe import of_recipe
from ddengine.commands.options import Machine, OfRecipe, RecipeT
from ddengine.commands.process import alone
from ddengine.system import log
from ddengine.uses.pruning import PruningConfig
from synth.cite import bibtex


@dataclass(frozen=True, kw_only=True)
class PruneOptions(OfRecipe, Machine, Generic[RecipeT]):
    """Flags of prune: --pruning.fractions, --pruning.selections, --pruning.alphas and so on.

    Then those of the recipe, of which data, model, init and evaluation are read.
    """

    # folders of distilled sets that stand beside selections of as many bytes
    sets: tuple[Path, ...] = ()
    out: Path | None = None  # folder to write; None: runs/prune-RECIPE-HASH
    restart: bool = False  # begin anew, deleting what the folder holds
    pruning: PruningConfig = PruningConfig()
    recipe: Annotated[RecipeT, tyro.conf.arg(name=""), tyro.conf.FlagConversionOff]


def main(args: list[str]) -> None:
    """The command."""
    options = of_recipe("prune", args, PruneOptions)
    if options is None:
        return
    alone("prune")
    outcome = ddengine.prune(
        None,
        options.recipe,
        options.pruning,
        sets=options.sets,
        folder=options.out or "auto",
        seed=options.seed,
        device=options.device,
        precision=options.precision,
        restart=options.restart,
        command=options.command,
        bibtex=bibtex,
    )
    cli.show(outcome)
    assert outcome.folder is not None
    log.say(f"which images were kept: {outcome.folder / 'kept'}")
    log.say(f"accuracy and best share of distillation: {outcome.folder / 'prune.png'}")
