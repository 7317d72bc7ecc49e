"""`cite RECIPE [flags]`: BibTeX of a method, its parts and the dataset; or of a command."""

from dataclasses import dataclass
from typing import Annotated, Generic

import tyro

from ddengine.commands.on_recipe import of_recipe
from ddengine.commands.options import ForNetworks, OfRecipe, RecipeT
from ddengine.system import log
from synth.cite import OF_COMMANDS, bibtex, bibtex_of_command


@dataclass(frozen=True, kw_only=True)
class CiteOptions(OfRecipe, ForNetworks, Generic[RecipeT]):
    """The flags are those of the recipe."""

    recipe: Annotated[RecipeT, tyro.conf.arg(name=""), tyro.conf.FlagConversionOff]


def main(args: list[str]) -> None:
    """The command. The entries are printed as they are, so that they can be sent to a file."""
    if len(args) == 1 and args[0] in OF_COMMANDS:
        log.console.print(bibtex_of_command(args[0]), end="", emoji=False)
        return
    options = of_recipe("cite", args, CiteOptions)
    if options is not None:
        log.console.print(bibtex(options.recipe), end="", emoji=False)
