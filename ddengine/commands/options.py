"""Commands whose arguments are a recipe and, in any order, flags of the run and of the recipe."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Generic, NoReturn, TypeVar

import tyro

from buffers.open import EXPERTS, Stores
from ddengine.commands import DEMO, cli
from ddengine.commands.flags import values_of
from ddengine.commands.words import asks_help, taken_flag, taken_name
from ddengine.recipe import EvalConfig, Recipe, parametrised, to_dict
from ddengine.system import log, program
from ddengine.system.errors import UserError, unknown
from ddengine.system.runtime import Precision
from synth.catalogue import RECIPES, as_changed, find, take
from synth.recipes.protocols import PROTOCOLS

RecipeT = TypeVar("RecipeT")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Flags of all commands that compute."""

    seed: int = 0  # decides every random draw but those of experts: buffer.seed
    device: str = "auto"  # auto | cpu | cuda | cuda:N
    precision: Precision = "fp32"


@dataclass(frozen=True, kw_only=True)
class OfRecipe:
    """Flags of all commands on a recipe; each adds its own, and the recipe."""

    print_config: bool = False  # print the resolved recipe and stop
    command: Annotated[tuple[str, ...], tyro.conf.Suppress] = ()  # the command line


@dataclass(frozen=True, kw_only=True)
class Options(OfRecipe, Machine, Generic[RecipeT]):
    """Flags of the run, then those of the recipe.

    --take PART=RECIPE takes a part from another recipe, e.g. objective.window=datm/cifar10_ipc10,
    and fills a slot that is shown as {None}.
    """

    out: Path | None = None  # folder to write; None: runs/RECIPE-HASH
    # expert store, or with teachers the folder of their stores; None: experts/FINGERPRINT
    experts: Path | None = None
    restart: bool = False  # begin anew, deleting what the folder holds
    compile: bool = False  # compile the inner training step
    force: bool = False  # start although memory or disk are estimated not to do
    tensorboard: bool = False  # also write TensorBoard files into the run's folder
    recipe: Annotated[RecipeT, tyro.conf.arg(name=""), tyro.conf.FlagConversionOff]


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
    options = cli.parse(kind, rest, kind(recipe=recipe), command if fixed else f"{command} {name}")
    recipe = as_changed(options.recipe, recipe)
    return replace(options, recipe=recipe, command=(command, *args))


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


def as_kind(kind: Any, value: Any) -> Any:
    """The values of a dataclass in another one with the same fields."""
    return kind(**{part.name: getattr(value, part.name) for part in fields(value)})


def _without_recipe(command: str, args: list[str], flags: Any) -> NoReturn:
    """Show the general flags where help was asked for. Raises UserError for another line."""
    started = program.name()
    if not asks_help(args):
        raise UserError(
            f"{started} {command} needs the name of a recipe first, e.g. {DEMO}; {started} recipes "
            "lists them."
        )
    cli.show_help(
        f"{command} RECIPE",
        flags[NoRecipe](recipe=NoRecipe()),
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
