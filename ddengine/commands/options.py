"""Options of commands whose arguments are a recipe and its flags, or paths and flags."""

import itertools
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar, cast

import tyro

from buffers.open import EXPERTS, Stores
from ddengine.commands import cli
from ddengine.recipe import (
    BufferT,
    CodecT,
    EvalConfig,
    ObjectiveT,
    Recipe,
    parametrised,
    require,
    resolved,
    to_dict,
)  # fmt: skip
from ddengine.system import log, program
from ddengine.system.errors import UserError, unknown
from ddengine.system.runtime import Precision
from synth.recipes import find, take
from synth.recipes.protocols import PROTOCOLS

DEMO = "mtt/digits_ipc1"


RecipeT = TypeVar("RecipeT")


SET = "the folder of a run or of a distilled set"


@dataclass(frozen=True, kw_only=True)
class Options(Generic[RecipeT]):
    """Flags of the run, then those of the recipe.

    --take PART=RECIPE takes a part from another recipe, e.g. objective.window=datm/cifar10_ipc10,
    and fills a slot that is shown as {None}.
    """

    seed: int = 0  # decides every random draw of the run
    device: str = "auto"  # auto | cpu | cuda | cuda:N
    precision: Precision = "fp32"
    # folder to write; None: runs/RECIPE-HASH, or experts/FINGERPRINT for buffer
    out: Path | None = None
    # expert store, or with teachers the folder of their stores; None: experts/FINGERPRINT
    experts: Path | None = None
    restart: bool = False  # begin anew, deleting what the folder holds
    compile: bool = False  # compile the inner training step
    force: bool = False  # start although memory or disk are estimated not to do
    tensorboard: bool = False  # also write TensorBoard files into the run's folder
    print_config: bool = False  # print the resolved recipe and stop
    command: Annotated[tuple[str, ...], tyro.conf.Suppress] = ()  # the command line
    recipe: Annotated[RecipeT, tyro.conf.arg(name=""), tyro.conf.FlagConversionOff]

    def stores(self, root: Path = EXPERTS) -> Stores:
        """Where the experts of the recipe lie."""
        where = {"seed": self.seed, "precision": self.precision, "folder": self.experts}
        return Stores.of(cast(Recipe, self.recipe), root=root, **where)


@dataclass(frozen=True, kw_only=True)
class Selection(Recipe[BufferT, CodecT, ObjectiveT]):
    """A recipe for `select`, which reads its data, ipc, network, init and evaluation, and what
    experts need where the kind of init asks them.

    The other parts have their flags, so that one command line does for `select` and `distill`, and
    need not fit together.
    """

    def __post_init__(self) -> None:
        require(self.ipc >= 1, f"ipc must be at least 1, got {self.ipc}.")


def options_of(
    command: str, args: list[str], fixed: str | None = None, flags: Any = Options
) -> Any:
    """Options and recipe from `RECIPE [--take PART=RECIPE]... [flags]`; `flags` is the dataclass
    that holds both, Options or one like it.
    """
    if fixed is None and (not args or args[0].startswith("-")):
        if set(args) & {"-h", "--help"}:
            raise UserError(
                f"{program.name()} {command} takes a recipe first, whose flags --help then lists: {program.name()} "
                f"{command} {DEMO} --help."
            )
        raise UserError(
            f"{program.name()} {command} needs the name of a recipe first, e.g. {DEMO}; {program.name()} recipes "
            "lists them."
        )
    name, rest = (fixed, list(args)) if fixed else (args[0], list(args[1:]))
    taken: list[str] = []
    rest = [
        word for arg in rest for word in (arg.split("=", 1) if arg.startswith("--take=") else [arg])
    ]
    while "--take" in rest:
        at = rest.index("--take")
        taken += rest[at + 1 : at + 2] or [""]
        del rest[at : at + 2]
    recipe = take(find(name), taken)
    if command == "select":
        recipe = Selection(**{part.name: getattr(recipe, part.name) for part in fields(recipe)})
    if taken:
        recipe = replace(
            recipe,
            published=None,
            note=f"{name} with parts of others ({', '.join(taken)}), for which nothing is published.",
        )
    recipe = replace(
        recipe, evaluation=named_protocol(rest, "--evaluation.protocol") or recipe.evaluation
    )
    kind = flags[parametrised(recipe)]
    options = cli.parse(kind, rest, kind(recipe=recipe), command if fixed else f"{command} {name}")
    if options.recipe.published is not None and not same_cell(options.recipe, recipe):
        options = replace(
            options,
            recipe=replace(
                options.recipe,
                published=None,
                note=f"{name} with other settings, for which nothing is published.",
            ),
        )
    return replace(options, command=(command, *args)) if hasattr(options, "command") else options


def same_cell(recipe: Recipe, published: Recipe) -> bool:
    """Whether nothing differs that decides what a published figure is of; how often is looked or
    saved does not.
    """

    def deciding(of: Recipe) -> dict[str, Any]:
        whole = resolved(of)
        outer = {k: v for k, v in whole.pop("outer").items() if not k.endswith("_every")}
        return {**whole, "outer": outer, "evaluation": None}

    return deciding(recipe) == deciding(published)


def named_protocol(args: list[str], flag: str) -> EvalConfig | None:
    """The protocol whose name `flag` gives, whose values the other flags then change; None without
    that flag.
    """
    words = [
        word
        for arg in args
        for word in (arg.split("=", 1) if arg.startswith(f"{flag}=") else [arg])
    ]
    if flag not in words[:-1]:
        return None
    name = words[words.index(flag) + 1]
    if name not in PROTOCOLS:
        raise unknown("protocol", name, PROTOCOLS)
    return PROTOCOLS[name]


def print_config(recipe: Recipe) -> None:
    """The resolved recipe, as JSON."""
    log.console.print_json(data=to_dict(recipe))


def paths_of(args: list[str], command: str, what: str) -> list[Path]:
    """The paths before the first flag. Raises UserError without any."""
    paths = [
        Path(word) for word in itertools.takewhile(lambda word: not word.startswith("-"), args)
    ]
    if not paths:
        raise UserError(f"{program.name()} {command} needs {what} first.")
    return paths


def of_recipe(command: str, args: list[str]) -> Options[Recipe] | None:
    """The options of a command on a recipe; None where its resolved recipe was to be printed."""
    options = options_of(command, args)
    if options.print_config:
        print_config(options.recipe)
        return None
    return options
