"""Recipes of installed packages, which name them by the entry point group `ddengine.recipes`.

A package says in its pyproject.toml where its recipes lie:

    [project.entry-points."ddengine.recipes"]
    mean_images = "mine.mean_images:recipe"

What is named is a Recipe, a function that returns one, or several in a list. They are loaded when a
recipe is asked for that this program does not have, and for the list of all.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from ddengine.recipe import Recipe
from ddengine.system import log
from ddengine.system.errors import UserError

GROUP = "ddengine.recipes"


@dataclass(frozen=True)
class Installed:
    """A recipe of an installed package."""

    recipe: Recipe
    package: str


def recipes_in(value: Any, where: str) -> list[Recipe]:
    """The recipes that a name of a module stands for: a Recipe, some, or a function of them.

    Raises UserError for anything else, which is at `where`.
    """
    if callable(value):
        value = value()
    if isinstance(value, Recipe):
        return [value]
    recipes = list(value) if isinstance(value, Iterable) else [value]
    for recipe in recipes:
        if not isinstance(recipe, Recipe):
            raise UserError(
                f"{where} gives a {type(recipe).__name__}; name a Recipe, or a function that "
                "returns one, or several."
            )
    return recipes


@cache
def installed() -> dict[str, Installed]:
    """The recipes of all installed packages by name.

    What cannot be loaded, and a second recipe of a name, is left out with a warning: a package that
    is broken must not keep anybody from using the others.
    """
    by_name: dict[str, Installed] = {}
    for point in entry_points(group=GROUP):
        package = "unknown" if point.dist is None else point.dist.name
        for recipe in _loaded(point, package):
            if recipe.name in by_name:
                log.say(
                    f"warning: the package {package} has a recipe {recipe.name}, as "
                    f"{by_name[recipe.name].package} has; only the latter is used"
                )
                continue
            by_name[recipe.name] = Installed(recipe, package)
    return by_name


def _loaded(point: EntryPoint, package: str) -> list[Recipe]:
    """The recipes that an entry point names; none, with a warning, where that fails."""
    try:
        return recipes_in(point.load(), point.value)
    except Exception as error:  # of a program that is not ours
        log.say(
            f"warning: the recipes of the package {package} cannot be loaded from {point.value} "
            f"({type(error).__name__}: {error})"
        )
        return []
