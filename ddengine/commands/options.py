"""Options of commands whose arguments are a recipe and its flags, or paths and flags."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Generic, NoReturn, TypeVar, cast

import tyro

from buffers.open import EXPERTS, Stores
from ddengine.artefact.runs import is_set
from ddengine.commands import DEMO, cli
from ddengine.commands.words import asks_help, taken_flag, taken_name, taken_paths
from ddengine.recipe import (
    BufferT,
    CodecT,
    EvalConfig,
    ObjectiveT,
    Recipe,
    for_networks,
    parametrised,
    require,
    to_dict,
)
from ddengine.system import log, program
from ddengine.system.errors import UserError, unknown
from ddengine.system.runtime import Precision
from ddengine.uses.continual import ContinualConfig
from synth.catalogue import RECIPES, as_changed, find, take
from synth.recipes.protocols import PROTOCOLS

RecipeT = TypeVar("RecipeT")
SET = "the folder of a run or of a distilled set"


@dataclass(frozen=True, kw_only=True)
class Options(Generic[RecipeT]):
    """Flags of the run, then those of the recipe.

    --take PART=RECIPE takes a part from another recipe, e.g. objective.window=datm/cifar10_ipc10,
    and fills a slot that is shown as {None}.
    """

    seed: int = 0  # decides every random draw of the run but those of experts: buffer.seed
    device: str = "auto"  # auto | cpu | cuda | cuda:N
    precision: Precision = "fp32"
    # folder to write; None: runs/RECIPE-HASH, or experts/FINGERPRINT for buffer
    out: Path | None = None
    # expert store, or with teachers the folder of their stores; None: experts/FINGERPRINT
    experts: Path | None = None
    # networks that the images are made for, and evaluated on: they take turns where the objective
    # draws networks, and are the teachers of a recipe with teachers; none: the recipe's
    networks: Annotated[tuple[str, ...], tyro.conf.arg(name="for")] = ()
    restart: bool = False  # begin anew, deleting what the folder holds
    compile: bool = False  # compile the inner training step
    force: bool = False  # start although memory or disk are estimated not to do
    tensorboard: bool = False  # also write TensorBoard files into the run's folder
    print_config: bool = False  # print the resolved recipe and stop
    command: Annotated[tuple[str, ...], tyro.conf.Suppress] = ()  # the command line
    recipe: Annotated[RecipeT, tyro.conf.arg(name=""), tyro.conf.FlagConversionOff]

    def stores(self, root: Path = EXPERTS) -> Stores:
        """Where the experts of the recipe lie."""
        where = {"precision": self.precision, "folder": self.experts}
        return Stores.of(cast(Recipe, self.recipe), root=root, **where)


@dataclass(frozen=True, kw_only=True)
class ContinualOptions(Generic[RecipeT]):
    """Flags of continual: --continual.stages, --continual.budget and so on.

    Then those of the recipe, whose ipc follows from the budget.
    """

    seed: int = 0  # decides the order of the classes and every random draw
    device: str = "auto"  # auto | cpu | cuda | cuda:N
    precision: Precision = "fp32"
    out: Path | None = None  # folder to write; None: runs/continual-RECIPE-HASH
    restart: bool = False  # begin anew, deleting what the folder holds
    print_config: bool = False  # print the resolved recipe and stop
    continual: ContinualConfig = ContinualConfig()
    recipe: Annotated[RecipeT, tyro.conf.arg(name=""), tyro.conf.FlagConversionOff]


@dataclass(frozen=True, kw_only=True)
class Selection(Recipe[BufferT, CodecT, ObjectiveT]):
    """A recipe for `select`, which reads its data, ipc, network, init and evaluation.

    And what experts need where the kind of init asks them. The other parts have their flags, so
    that one command line does for `select` and `distill`, and need not fit together.
    """

    def __post_init__(self) -> None:
        require(self.ipc >= 1, f"ipc must be at least 1, got {self.ipc}.")


@dataclass(frozen=True)
class NoRecipe:
    """What stands in the place of a recipe where the general flags are shown."""


def options_of(
    command: str, args: list[str], fixed: str | None = None, flags: Any = Options
) -> Any:
    """Options and recipe of a line with a recipe, `--take PART=RECIPE` and flags in any order.

    `flags` is the dataclass that holds both, Options or one like it; `fixed` the recipe of a
    command that has its own.
    """
    name, rest = (fixed, list(args)) if fixed else taken_name(args, RECIPES)
    if name is None:
        _without_recipe(command, rest, flags)
    taken, rest = taken_flag(rest, "--take")
    recipe = take(find(name), taken)
    if command == "select":
        recipe = Selection(**{part.name: getattr(recipe, part.name) for part in fields(recipe)})
    named = named_protocol(rest, "--evaluation.protocol")
    if named is not None:
        recipe = replace(recipe, evaluation=named)
    kind = flags[parametrised(recipe)]
    options = cli.parse(kind, rest, kind(recipe=recipe), command if fixed else f"{command} {name}")
    if flags is ContinualOptions:
        return replace(options, recipe=as_changed(options.recipe, recipe))
    if command == "select" and len(options.networks) > 1:
        raise UserError(
            f"--for names {len(options.networks)} networks, and select chooses images once, "
            "through one; name one."
        )
    changed = as_changed(for_networks(options.recipe, options.networks), recipe)
    return replace(options, recipe=changed, command=(command, *args))


def _without_recipe(command: str, args: list[str], flags: Any) -> NoReturn:
    """Show the general flags where help was asked for. Raises UserError for another line."""
    started = program.name()
    if not asks_help(args):
        raise UserError(
            f"{started} {command} needs the name of a recipe first, e.g. {DEMO}; {started} recipes "
            "lists them."
        )
    log.say(
        f"{started} {command} RECIPE [flags]: the general flags are below; {started} {command} "
        f"{DEMO} --help shows those of a recipe too, {started} recipes lists the recipes."
    )
    kind = flags[NoRecipe]
    cli.parse(kind, ["--help"], kind(recipe=NoRecipe()), f"{command} RECIPE")
    raise SystemExit(0)


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


def print_config(recipe: Recipe) -> None:
    """The resolved recipe, as JSON."""
    log.console.print_json(data=to_dict(recipe))


def paths_of(
    args: list[str], command: str, what: str, is_meant: Callable[[Path], bool] = is_set
) -> tuple[list[Path], list[str]]:
    """(paths, flags) of a line with both in any order. Raises UserError without a path."""
    paths, rest = taken_paths(args, is_meant)
    if not paths:
        raise UserError(f"{program.name()} {command} needs {what} first.")
    return paths, rest


def path_of(
    args: list[str], command: str, what: str, is_meant: Callable[[Path], bool] = is_set
) -> tuple[Path, list[str]]:
    """(path, flags) of a line with one path. Raises UserError without one."""
    paths, rest = paths_of(args, command, what, is_meant)
    return paths[0], [*map(str, paths[1:]), *rest]


def of_recipe(command: str, args: list[str]) -> Options[Recipe] | None:
    """The options of a command on a recipe; None where its resolved recipe was to be printed."""
    options = options_of(command, args)
    if options.print_config:
        print_config(options.recipe)
        return None
    return options
