"""All recipes by name, `method/dataset_ipcN`: finding one, changing it, mixing it with others.

Recipes are discovered: every module in synth/recipes that has a function `recipes()` gives its own.
A recipe of somebody else's package is named `package.module:recipe`, where `recipe` is a Recipe, or
a function that returns one, or several by name after another colon: `package.module:recipes:NAME`.
Packages that are installed may name theirs by an entry point (`synth.installed`); then their own
names will do.
"""

import importlib
import pkgutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from types import ModuleType
from typing import Any

import synth.recipes
from ddengine.changes import as_changed, changed
from ddengine.recipe import PARTS, Recipe
from ddengine.system.errors import UserError, unknown
from synth.installed import installed, recipes_in


def modules() -> Iterator[ModuleType]:
    """The modules of synth/recipes, in the order of their names."""
    for info in pkgutil.iter_modules(synth.recipes.__path__):
        yield importlib.import_module(f"synth.recipes.{info.name}")


def discovered() -> dict[str, Recipe]:
    """The recipes of all modules that have some, by name.

    Raises ValueError where two of them have the same name.
    """
    by_name: dict[str, Recipe] = {}
    for module in modules():
        # probe: of modules; those without are what several methods share
        if not hasattr(module, "recipes"):
            continue
        for recipe in module.recipes():
            if recipe.name in by_name:
                raise ValueError(f"{module.__name__} has a second recipe named {recipe.name}")
            by_name[recipe.name] = recipe
    return by_name


RECIPES = discovered()


def find(name: str, /, **changes: Any) -> Recipe:
    """The recipe of that name, with changes, which are checked.

    Args:
        name: one of RECIPES or of an installed package, or `package.module:recipe`.
        changes: new values of fields; of a part, a mapping changes some of its fields:
            `find("dm/cifar10_ipc10", ipc=5, outer={"steps": 100, "optim": {"images": {"lr": 2}}})`.

    Raises:
        UserError: a name, a field or a value that does not exist or does not fit; the sentence
            names the nearest.
    """
    recipe = _of_package(name) if ":" in name else RECIPES.get(name) or _installed(name)
    if not changes:
        return recipe
    return as_changed(changed(recipe, changes), recipe)


def _installed(name: str) -> Recipe:
    """The recipe of an installed package of that name. Raises UserError where there is none."""
    others = installed()
    if name not in others:
        raise unknown("recipe", name, [*RECIPES, *others])
    return others[name].recipe


def _of_package(name: str) -> Recipe:
    """The recipe that `package.module:recipe` names."""
    module_name, attribute, *rest = name.split(":")
    try:
        value: Any = importlib.import_module(module_name)
    except ImportError as error:
        raise UserError(
            f"The recipe {name!r} lies in the module {module_name}, which cannot be imported "
            f"({error}); correct the name, or install its package."
        ) from None
    # probe: of a module of somebody else
    if not hasattr(value, attribute):
        raise UserError(f"The module {module_name} has no {attribute!r}, which {name!r} names.")
    recipes = recipes_in(getattr(value, attribute), f"{module_name}:{attribute}")
    if len(recipes) == 1 and not rest:
        return recipes[0]
    by_name = {recipe.name: recipe for recipe in recipes}
    wanted = ":".join(rest)
    if wanted not in by_name:
        raise unknown(f"recipe in {module_name}:{attribute}", wanted, by_name)
    return by_name[wanted]


def take(recipe: Recipe, assignments: Sequence[str] | str) -> Recipe:
    """The recipe with parts taken from others, which its field `taken` says.

    Each assignment is `PART=RECIPE`: buffer=ast/cifar10_ipc10, objective.window=datm/cifar10_ipc10.
    Raises UserError for parts and recipes that do not exist, and for parts that do not go together.
    """
    if isinstance(assignments, str):
        assignments = [assignments]
    if not assignments:
        return recipe
    parts: dict[str, Any] = {}  # put in at once, because parts are checked together
    for assignment in assignments:
        path, _, source = assignment.partition("=")
        first, *rest = _checked_path(path, source, assignment, recipe.name)
        value = getattr(find(source), first)
        walked = [first]
        for name in rest:
            value = _inside(value, name, walked, source)
            walked = [*walked, name]
        receiver = parts.get(first, getattr(recipe, first))
        parts[first] = _with(receiver, rest, value, [first], recipe.name)
    names = ", ".join(assignments)
    note = f"{recipe.name} with parts of others ({names}), for which nothing is published."
    taken = (*recipe.taken, *assignments)
    return replace(recipe, **parts, published=None, note=note, taken=taken)


def _checked_path(path: str, source: str, assignment: str, example: str) -> list[str]:
    """The names in the part's path of an assignment; raises UserError for what is no part."""
    if not source:
        raise UserError(
            f"--take {assignment!r} must have the form PART=RECIPE, e.g. buffer={example}."
        )
    names = path.split(".")
    if names[0] in ("model", "ipc"):
        raise UserError(
            f"--take {assignment!r} names a value and not a part; set it with --{names[0]}."
        )
    if names[0] not in PARTS:
        raise unknown("part in --take", path, PARTS)
    return names


def _inside(part: Any, name: str, walked: list[str], source: str) -> Any:
    """The field or entry `name` of a part of the recipe `source`."""
    where = ".".join(walked)
    if part is None:
        raise UserError(
            f"--take {where}.{name}: {where} is empty in {source}; take {where} whole from a "
            "recipe that has it."
        )
    values: dict[str, Any] = {}
    if is_dataclass(part):
        for field in fields(part):
            values[field.name] = getattr(part, field.name)
    elif isinstance(part, Mapping):
        values.update(part)
    if name not in values:
        known = [f"{where}.{entry}" for entry in values]
        raise unknown("part in --take", f"{where}.{name}", known or PARTS)
    return values[name]


def _with(part: Any, names: list[str], value: Any, walked: list[str], owner: str) -> Any:
    """`part` with `value` in the place that `names` lead to; a mapping takes new entries."""
    if not names:
        return value
    name, *rest = names
    changed = value
    if rest or not isinstance(part, Mapping):
        inside = _inside(part, name, walked, owner)
        changed = _with(inside, rest, value, [*walked, name], owner)
    if isinstance(part, Mapping):
        return {**part, name: changed}
    return replace(part, **{name: changed})
