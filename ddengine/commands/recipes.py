"""`recipes`: the recipes with their published figures."""

from dataclasses import dataclass

from rich.table import Table

from ddengine.commands import cli
from ddengine.commands.words import asks_help
from ddengine.recipe import Recipe
from ddengine.system import log, program
from ddengine.system.errors import UserError
from synth.catalogue import RECIPES


@dataclass(frozen=True)
class RecipesOptions:
    """The recipes with their published figures; it has no flags."""


def main(args: list[str]) -> None:
    """Print the table of recipes."""
    if asks_help(args):
        cli.show_help("recipes", RecipesOptions())
    if args:
        raise UserError(f"{program.name()} recipes takes no arguments, got {' '.join(args)}.")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))  # 80 columns are enough for it
    for column in ("recipe", "published %", "for", "network"):
        table.add_column(column, no_wrap=True)
    for recipe in RECIPES.values():
        figure = recipe.published
        shown = "-"
        if figure is not None:
            shown = f"{100 * figure.accuracy:.1f}"
            if figure.std is not None:
                shown += f" ± {100 * figure.std:.1f}"
        table.add_row(recipe.name, shown, wants(recipe), recipe.model)
    log.console.print(table)
    log.say(
        f"{program.name()} distill NAME --print_config shows a recipe, with notes on its figure"
    )


def wants(recipe: Recipe) -> str:
    """What the work wants to run on: minutes of a CPU, or hours of a GPU."""
    small = recipe.data.name == "digits" or (
        recipe.data.limit is not None and recipe.data.limit <= 10_000
    )
    return "CPU" if small else "GPU"
