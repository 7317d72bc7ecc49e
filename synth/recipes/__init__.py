"""Recipes by name, `method/dataset_ipcN`. One file a method; each has `recipes()`."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

from ddengine.recipe import PARTS, Recipe
from ddengine.system.errors import UserError, unknown
from synth.recipes import ast, datm, dc, dm, ftd, idc, infer, mtt, rded, sre2l, tesla

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for method in (mtt, ftd, tesla, datm, ast, dc, dm, idc, infer, sre2l, rded)
    for recipe in method.recipes()
}


def find(name: str) -> Recipe:
    """The recipe of that name. Raises UserError naming the nearest."""
    if name not in RECIPES:
        raise unknown("recipe", name, RECIPES)
    return RECIPES[name]


def take(recipe: Recipe, assignments: list[str]) -> Recipe:
    """The recipe with parts taken from others:

    `PART=RECIPE`, e.g. buffer=ast/cifar10_ipc10, objective.window=datm/cifar10_ipc10.
    """
    taken: dict[str, Any] = {}  # put in at once, because parts are checked together
    for assignment in assignments:
        path, _, source = assignment.partition("=")
        if not source:
            raise UserError(
                f"--take {assignment!r} must have the form PART=RECIPE, e.g. buffer={recipe.name}."
            )
        first, *rest = path.split(".")
        if first in ("model", "ipc"):
            raise UserError(
                f"--take {assignment!r} names a value and not a part; set it with --{first}."
            )
        if first not in PARTS:
            raise unknown("part in --take", path, PARTS)
        value = getattr(find(source), first)
        for i, name in enumerate(rest):
            value = _inside(value, name, [first, *rest[:i]], source)
        taken[first] = _with(
            taken.get(first, getattr(recipe, first)), rest, value, [first], recipe.name
        )
    return replace(recipe, **taken)


def _inside(part: Any, name: str, walked: list[str], source: str) -> Any:
    where = ".".join(walked)
    if part is None:
        raise UserError(
            f"--take {where}.{name}: {where} is empty in {source}; take {where} whole from a "
            "recipe that has it."
        )
    known = (
        [f.name for f in fields(part)]
        if is_dataclass(part)
        else list(part)
        if isinstance(part, Mapping)
        else []
    )
    if name not in known:
        raise unknown("part in --take", f"{where}.{name}", [f"{where}.{k}" for k in known] or PARTS)
    return part[name] if isinstance(part, Mapping) else getattr(part, name)


def _with(part: Any, names: list[str], value: Any, walked: list[str], owner: str) -> Any:
    """`part` with `value` in the place that `names` lead to; a mapping takes new entries."""
    if not names:
        return value
    name, *rest = names
    if isinstance(part, Mapping) and not rest:
        return {**part, name: value}
    inner = _with(_inside(part, name, walked, owner), rest, value, [*walked, name], owner)
    return {**part, name: inner} if isinstance(part, Mapping) else replace(part, **{name: inner})
