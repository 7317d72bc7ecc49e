"""`recipes`: the recipes with their published figures."""

from dataclasses import dataclass

from rich.table import Table

from ddengine.commands import cli
from ddengine.commands.words import asks_help
from ddengine.recipe import Recipe
from ddengine.system import log, program
from ddengine.system.errors import UserError
from synth.catalogue import RECIPES
from synth.installed import installed
from synth.measured import reached


@dataclass(frozen=True)
class RecipesOptions:
    """The recipes with their published figures; it has no flags."""


def main(args: list[str]) -> None:
    """Print the table of recipes."""
    if asks_help(args):
        cli.show_help(RecipesOptions, "recipes", RecipesOptions())
    if args:
        raise UserError(f"{program.name()} recipes takes no arguments, got {' '.join(args)}.")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))  # 80 columns are enough for it
    for column in ("recipe", "published %", "here", "network"):
        table.add_column(column, no_wrap=True)
    others = {name: each for name, each in installed().items() if name not in RECIPES}
    for recipe in (*RECIPES.values(), *(each.recipe for each in others.values())):
        table.add_row(recipe.name, published(recipe), here(recipe), recipe.model)
    log.console.print(table)
    for name, each in others.items():
        log.say(f"{name} is of the package {each.package}")
    log.say(
        "here: the test accuracy in % that a table which advise reads has of the recipe; others "
        "are in none as they are, and want minutes of a CPU or hours of a GPU"
    )
    log.say(
        f"{program.name()} distill NAME --print_config shows a recipe, with notes on its figure"
    )


def published(recipe: Recipe) -> str:
    """The published figure in percent, - without one."""
    figure = recipe.published
    if figure is None:
        return "-"
    if figure.std is None:
        return f"{100 * figure.accuracy:.1f}"
    return f"{100 * figure.accuracy:.1f} ± {100 * figure.std:.1f}"


def here(recipe: Recipe) -> str:
    """What was measured of a recipe as it is, in percent; of others what they want to run on."""
    accuracy = reached().get(recipe.name)
    return wants(recipe) if accuracy is None else f"{100 * accuracy:.1f}"


def wants(recipe: Recipe) -> str:
    """What the work wants to run on: minutes of a CPU, or hours of a GPU."""
    data = recipe.data
    few = data.limit is not None and data.limit <= 10_000
    # one's own folder has as many images as it has; its recipes are for a CPU
    return "CPU" if few or data.name in ("digits", "folder") else "GPU"
