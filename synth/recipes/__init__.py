"""Recipes by name, `method/dataset_ipcN`. One file a method; each has `recipes()`."""

from dataclasses import replace
from typing import Any

from ddengine.errors import UserError, unknown
from ddengine.recipe import PARTS, Recipe
from synth.recipes import mtt

RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in mtt.recipes()}


def find(name: str) -> Recipe:
    """The recipe of that name. Raises UserError naming the nearest."""
    if name not in RECIPES:
        raise unknown("recipe", name, RECIPES)
    return RECIPES[name]


def take(recipe: Recipe, assignments: list[str]) -> Recipe:
    """The recipe with whole parts taken from others: `PART=RECIPE`, e.g. buffer=mtt/cifar10_ipc10."""
    parts: dict[str, Any] = {}
    for assignment in assignments:
        part, _, source = assignment.partition("=")
        if not source:
            raise UserError(f"--take {assignment!r} must have the form PART=RECIPE, e.g. buffer={recipe.name}.")
        if part not in PARTS:
            raise unknown("part in --take", part, PARTS)
        parts[part] = getattr(find(source), part)
    return replace(recipe, **parts)
