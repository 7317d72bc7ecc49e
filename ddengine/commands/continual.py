"""`continual RECIPE [flags]`: class-incremental learning with memories of equal bytes."""

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
from ddengine.uses.continual import ContinualConfig


@dataclass(frozen=True, kw_only=True)
class ContinualOptions(OfRecipe, Machine, Generic[RecipeT]):
    """Flags of continual: --continual.stages, --continual.budget and so on.

    Then those of the recipe, whose ipc follows from the budget.
    """

    out: Path | None = None  # folder to write; None: runs/continual-RECIPE-HASH
    restart: bool = False  # begin anew, deleting what the folder holds
    continual: ContinualConfig = ContinualConfig()
    recipe: Annotated[RecipeT, tyro.conf.arg(name=""), tyro.conf.FlagConversionOff]


def main(args: list[str]) -> None:
    """The command."""
    options = of_recipe("continual", args, ContinualOptions)
    if options is None:
        return
    alone("continual")
    outcome = ddengine.continual(
        None,
        options.recipe,
        options.continual,
        folder=options.out or "auto",
        seed=options.seed,
        device=options.device,
        precision=options.precision,
        restart=options.restart,
        command=options.command,
    )
    cli.show(outcome)
    assert outcome.folder is not None
    log.say(f"accuracy after each stage: {outcome.folder / 'continual.png'}")
