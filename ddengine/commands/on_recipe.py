"""Commands whose arguments are a recipe and, in any order, flags of the run and of the recipe."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from buffers.open import Stores
from ddengine.artefact.runs import EXPERTS
from ddengine.commands import DEMO, cli
from ddengine.commands.flags import values_of
from ddengine.commands.options import ForNetworks, NamedProtocol, Options, as_kind
from ddengine.commands.words import asks_help, taken_flag, taken_name
from ddengine.recipe import EvalConfig, Recipe, for_networks
from ddengine.system import log, program
from ddengine.system.configs import parametrised, to_dict
from ddengine.system.errors import UserError, unknown
from synth.catalogue import RECIPES, as_changed, find, take
from synth.recipes.protocols import PROTOCOLS


@dataclass(frozen=True)
class NoRecipe:
    """What stands in the place of a recipe where the general flags are shown."""


def options_of(
    command: str,
    args: list[str],
    flags: Any = Options,
    *,
    fixed: str | None = None,
    read: Callable[[Recipe], Recipe] = lambda recipe: recipe,
) -> Any:
    """Options and recipe of a line with a recipe, `--take PART=RECIPE` and flags in any order.

    `flags` is the dataclass that holds both, such as Options; `fixed` the recipe of a command that
    has its own; `read` gives the recipe as the command reads it.
    """
    taken, rest = taken_flag(args, "--take")
    name = fixed
    if name is None:
        name, rest = taken_name(rest, RECIPES, values_of(flags, Recipe))
    if name is None:
        _without_recipe(command, rest, flags)
    recipe = read(take(find(name), taken))
    named = named_protocol(rest, "--evaluation.protocol")
    if named is not None:
        recipe = replace(recipe, evaluation=named)
    kind = flags[parametrised(recipe)]
    shown = replace(recipe, evaluation=as_kind(NamedProtocol, recipe.evaluation))
    options = cli.parse(kind, rest, kind(recipe=shown), command if fixed else f"{command} {name}")
    changed = options.recipe
    changed = replace(changed, evaluation=as_kind(EvalConfig, changed.evaluation))
    if isinstance(options, ForNetworks):
        changed = for_networks(changed, options.networks)
    return replace(options, recipe=as_changed(changed, recipe), command=(command, *args))


def of_recipe(command: str, args: list[str], flags: Any, **how: Any) -> Any:
    """As `options_of`; None where the resolved recipe was to be printed, which is done."""
    options = options_of(command, args, flags, **how)
    if options.print_config:
        log.console.print_json(data=to_dict(options.recipe))
        return None
    return options


def stores_of(options: Any, folder: Path | None, root: Path = EXPERTS) -> Stores:
    """Where the experts of the recipe of some options lie; `folder` is as `Stores` has it."""
    where = {"precision": options.precision, "folder": folder}
    return Stores.of(options.recipe, root=root, **where)


def _without_recipe(command: str, args: list[str], flags: Any) -> NoReturn:
    """Show the general flags where help was asked for. Raises UserError for another line."""
    started = program.name()
    if not asks_help(args):
        raise UserError(
            f"{started} {command} needs the name of a recipe first, e.g. {DEMO}; {started} recipes "
            "lists them."
        )
    cli.show_help(
        flags[NoRecipe],
        f"{command} RECIPE",
        flags(recipe=NoRecipe()),
        f"{started} {command} RECIPE [flags]: the general flags are below; {started} {command} "
        f"{DEMO} --help shows those of a recipe too, {started} recipes lists the recipes.",
    )


def named_protocol(args: list[str], flag: str) -> EvalConfig | None:
    """The protocol whose name `flag` gives; None without that flag.

    The other flags then change its values.
    """
    values, _ = taken_flag(args, flag)
    if not values or not values[0]:
        return None
    if values[0] not in PROTOCOLS:
        raise unknown("protocol", values[0], PROTOCOLS)
    return PROTOCOLS[values[0]]
