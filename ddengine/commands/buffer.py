"""`buffer RECIPE [flags]`: train the experts of a recipe and store them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Generic

import tyro

import buffers
from ddengine.commands.on_recipe import of_recipe
from ddengine.commands.options import ForNetworks, Machine, OfRecipe, Ranks, RecipeT
from ddengine.commands.process import start
from ddengine.system import log
from ddengine.system.errors import UserError


@dataclass(frozen=True, kw_only=True)
class BufferOptions(OfRecipe, ForNetworks, Ranks, Machine, Generic[RecipeT]):
    """Flags of buffer, then those of the recipe."""

    # folder of the store, or with teachers of their stores; None: experts/FINGERPRINT
    out: Path | None = None
    experts: Path | None = None  # the same, as distill names it
    restart: bool = False  # train anew, deleting the store that is there
    recipe: Annotated[RecipeT, tyro.conf.arg(name=""), tyro.conf.FlagConversionOff]


def main(args: list[str]) -> None:
    """The command."""
    options = of_recipe("buffer", args, BufferOptions)
    if options is None:
        return
    if options.recipe.buffer is None:
        raise UserError(f"The recipe {options.recipe.name} needs no experts; run distill.")
    seed = options.recipe.buffer.seed
    if options.seed != seed:
        log.say(
            f"--seed {options.seed} is the distillation's, which these experts serve with any; "
            f"they have --buffer.seed {seed}"
        )
    start(options)
    buffers.generate(
        None,
        options.recipe,
        folder=options.out or options.experts,
        device=options.device,
        precision=options.precision,
        restart=options.restart,
    )
