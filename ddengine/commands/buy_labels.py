"""`buy_labels RECIPE [flags]`: which labels to ask a teacher for that errs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Generic

import tyro

import ddengine
from ddengine.commands import cli
from ddengine.commands.on_recipe import of_recipe
from ddengine.commands.options import Machine, OfRecipe, RecipeT
from ddengine.commands.process import alone
from ddengine.uses.labels import LabelsConfig


@dataclass(frozen=True, kw_only=True)
class BuyLabelsOptions(OfRecipe, Machine, Generic[RecipeT]):
    """Flags of buy_labels: --labels.rules, --labels.points, --labels.wrong and so on.

    Then those of the recipe, of which data, model and evaluation are read.
    """

    # folder of a set whose images are the points; None: the training images
    pool: Path | None = None
    # CSV file that answers (columns index or name, and class); what it does not say yet is asked
    # for in ask.csv. None: --labels says who answers
    answers: Path | None = None
    out: Path | None = None  # folder to write; None: runs/labels-RECIPE-HASH
    restart: bool = False  # begin anew, deleting what the folder holds
    labels: LabelsConfig = LabelsConfig()
    recipe: Annotated[RecipeT, tyro.conf.arg(name=""), tyro.conf.FlagConversionOff]


def main(args: list[str]) -> None:
    """The command."""
    options = of_recipe("buy_labels", args, BuyLabelsOptions)
    if options is None:
        return
    alone("buy_labels")
    outcome = ddengine.buy_labels(
        None,
        options.recipe,
        options.labels,
        pool=options.pool,
        answers=options.answers,
        folder=options.out or "auto",
        seed=options.seed,
        device=options.device,
        precision=options.precision,
        restart=options.restart,
        command=options.command,
    )
    cli.show(outcome)
