"""All recipes by name, `method/dataset_ipcN`: finding one, changing it, mixing it with others.

Recipes are discovered: every module in synth/recipes that has a function `recipes()` gives its own.
A recipe of somebody else's package is named `package.module:recipe`, where `recipe` is a Recipe, or
a function that returns one, or several by name after another colon: `package.module:recipes:NAME`.
"""

import importlib
import pkgutil
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from types import ModuleType
from typing import Any

import synth.recipes
from ddengine.recipe import PARTS, Recipe, resolved
from ddengine.system.errors import UserError, unknown


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


def find(name: str, **changes: Any) -> Recipe:
    """The recipe of that name, with changes, which are checked.

    Args:
        name: one of RECIPES, or `package.module:recipe` for one of another package.
        changes: new values of fields; of a part, a mapping changes some of its fields:
            `find("dm/cifar10_ipc10", ipc=5, outer={"steps": 100, "optim": {"images": {"lr": 2}}})`.

    Raises:
        UserError: a name, a field or a value that does not exist or does not fit; the sentence
            names the nearest.
    """
    recipe = _of_package(name) if ":" in name else RECIPES.get(name)
    if recipe is None:
        raise unknown("recipe", name, RECIPES)
    return as_changed(_changed(recipe, changes, ()), recipe) if changes else recipe


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
    value = getattr(value, attribute)
    if callable(value):
        value = value()
    if not isinstance(value, Recipe):
        by_name = {recipe.name: recipe for recipe in value}
        wanted = ":".join(rest)
        if wanted not in by_name:
            raise unknown(f"recipe in {module_name}:{attribute}", wanted, by_name)
        value = by_name[wanted]
    return value


def _changed(part: Any, changes: Mapping[str, Any], walked: tuple[str, ...]) -> Any:
    """A part with some of its fields changed; all at once, because they are checked together."""
    hints = typing.get_type_hints(type(part))
    values = {}
    for name, value in changes.items():
        path = (*walked, name)
        if name not in hints:
            raise unknown("field", ".".join(path), [".".join((*walked, known)) for known in hints])
        values[name] = _changed_value(getattr(part, name), value, hints[name], path)
    return replace(part, **values)


def _changed_value(present: Any, value: Any, hint: Any, walked: tuple[str, ...]) -> Any:
    """What comes of a value when it is changed; mappings change some of its fields or entries."""
    if isinstance(value, Mapping) and is_dataclass(present):
        return _changed(present, value, walked)
    if isinstance(value, Mapping) and isinstance(present, Mapping):
        entries = dict(present)
        of_entries = typing.get_args(hint)[-1]
        for key, change in value.items():
            entries[key] = _changed_value(entries.get(key), change, of_entries, (*walked, key))
        return entries
    if isinstance(value, list):
        value = tuple(value)
    if not _fits(value, hint):
        shown = str(hint).replace("typing.", "")
        name = hint.__name__ if isinstance(hint, type) else shown
        raise UserError(f"{'.'.join(walked)} is of type {name}, and {value!r} is not; change it.")
    plain: Any = value
    return float(plain) if hint is float else plain


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value has the type of a field; what is no plain value is not looked at."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, argument) for argument in arguments)
    if origin is typing.Literal:
        return value in arguments
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if arguments[-1] is Ellipsis:
            arguments = arguments[:1] * len(value)
        pairs = zip(value, arguments, strict=False)
        return len(value) == len(arguments) and all(_fits(item, kind) for item, kind in pairs)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint in (str, bool, type(None)):
        return isinstance(value, hint)
    return True


def same_cell(recipe: Recipe, published: Recipe) -> bool:
    """Whether both are one published cell: nothing differs that decides its figure.

    How often a run is looked at or saved does not, nor does how its result is evaluated.
    """
    return _deciding(recipe) == _deciding(published)


def _deciding(recipe: Recipe) -> dict[str, Any]:
    """What decides a published figure, as JSON data."""
    content = resolved(recipe)
    for name in list(content["outer"]):
        if name.endswith("_every"):
            del content["outer"][name]
    del content["evaluation"]
    return content


def as_changed(recipe: Recipe, before: Recipe) -> Recipe:
    """A recipe that was changed, without the published figure that belongs to it as it was before.

    Nothing happens where nothing differs that decides the figure.
    """
    if recipe.published is None or same_cell(recipe, before):
        return recipe
    note = f"{before.name} with other settings, for which nothing is published."
    return replace(recipe, published=None, note=note)


def take(recipe: Recipe, assignments: list[str]) -> Recipe:
    """The recipe with parts taken from others, which its field `taken` says.

    Each assignment is `PART=RECIPE`: buffer=ast/cifar10_ipc10, objective.window=datm/cifar10_ipc10.
    Raises UserError for parts and recipes that do not exist, and for parts that do not go together.
    """
    if not assignments:
        return recipe
    parts: dict[str, Any] = {}  # put in at once, because parts are checked together
    for assignment in assignments:
        path, _, source = assignment.partition("=")
        first, *rest = _checked_path(path, source, assignment, recipe.name)
        value = getattr(find(source), first)
        for i, name in enumerate(rest):
            value = _inside(value, name, [first, *rest[:i]], source)
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
    known: list[str] = []
    if is_dataclass(part):
        known = [field.name for field in fields(part)]
    elif isinstance(part, Mapping):
        known = list(part)
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
    if isinstance(part, Mapping):
        return {**part, name: inner}
    return replace(part, **{name: inner})
