"""`sweep RECIPE --grid FIELD=VALUES --seeds SEEDS [flags]`: all settings of a grid, some seeds."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, make_dataclass
from pathlib import Path
from typing import Annotated, Any, Generic

import tyro

import buffers
import ddengine
from ddengine.api.sweep import FILES
from ddengine.changes import kind_of
from ddengine.commands import cli
from ddengine.commands.bring_in import without_flags
from ddengine.commands.evaluate import EvaluateOptions
from ddengine.commands.options import RecipeT, named_protocol, options_of, print_config
from ddengine.commands.process import alone
from ddengine.commands.words import is_flag, taken_name
from ddengine.recipe import EvalConfig, Recipe
from ddengine.system import log, program
from ddengine.system.errors import UserError
from ddengine.system.runtime import Precision
from synth.catalogue import RECIPES
from synth.cite import bibtex


@dataclass(frozen=True, kw_only=True)
class SweepOptions(Generic[RecipeT]):
    """Flags of sweep, then those of the recipe; those of evaluate may be given, too.

    Each run is what distill and evaluate make of the same flags; it lies in FOLDER/runs.
    """

    # a field and its values, outer.optim.images.lr=10,100; once for each field that is swept
    grid: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    seeds: str = "0"  # of the distillations, such as 0,1,2
    # how many runs are at work at a time, each on one thread; None: as many as there are cores, and
    # one on CUDA
    jobs: int | None = None
    to: int | None = None  # number of the row that others are compared with; None: the first
    # what the figure shows accuracy against: ipc | bytes | seconds | a setting; None: the first
    # setting that is a number
    x: str | None = None
    seed: int = 0  # of the evaluations: all have networks of the same seeds
    device: str = "auto"  # auto | cpu | cuda | cuda:N
    precision: Precision = "fp32"
    out: Path | None = None  # folder to write; None: runs/sweep-RECIPE-HASH
    # expert store of all runs, or with teachers the folder of their stores; None:
    # experts/FINGERPRINT, which are made where they are missing
    experts: Path | None = None
    restart: bool = False  # begin all runs anew, deleting what the folder holds of them
    compile: bool = False  # compile the inner training step
    force: bool = False  # start although memory or disk are estimated not to do
    tensorboard: bool = False  # also write TensorBoard files into the runs' folders
    print_config: bool = False  # print the resolved recipe that all runs start from and stop
    command: Annotated[tuple[str, ...], tyro.conf.Suppress] = ()  # the command line
    recipe: Annotated[RecipeT, tyro.conf.arg(name=""), tyro.conf.FlagConversionOff]


# flags that the distill command of a run has not, or with other values
NOT_OF_DISTILL = ("grid", "seeds", "jobs", "to", "x", "seed", "out", "restart", "print_config")
# arguments of ddengine.evaluate that are no further ones, or are given as those of the sweep
OF_SWEEP = (
    "data",
    "protocol",
    "experts",
    "folder",
    "seed",
    "device",
    "precision",
    "restart",
)


def main(args: list[str]) -> None:
    """The command."""
    name, words = taken_name(args, RECIPES)
    of_evaluate, rest = evaluate_words(words)
    line = rest if name is None else [name, *rest]
    options: SweepOptions[Recipe] = options_of("sweep", line, flags=SweepOptions)
    if options.print_config:
        return print_config(options.recipe)
    alone("sweep")
    outcome = ddengine.sweep(
        None,
        options.recipe,
        grid=grid_of(options.grid, options.recipe),
        seeds=seeds_of(options.seeds),
        folder=options.out,
        jobs=options.jobs,
        experts=buffers.ExpertMaker(folder=options.experts),
        evaluation=evaluation_of(of_evaluate, options.recipe),
        to=options.to,
        x=options.x,
        seed=options.seed,
        device=options.device,
        precision=options.precision,
        compile=options.compile,
        restart=options.restart,
        force=options.force,
        tensorboard=options.tensorboard,
        bibtex=bibtex,
        command=("distill", *without_flags(line, NOT_OF_DISTILL)),
    )
    log.console.print(outcome.table())
    for note in outcome.notes:
        log.say(note)
    assert outcome.folder is not None
    if outcome.rows:
        written = ", ".join(str(outcome.folder / file) for file in FILES)
        log.say(f"runs: {outcome.folder / 'runs'}; written: {written}")
    failed = outcome.content["failed"]
    if failed:
        raise UserError(
            f"{len(failed)} runs failed, as the table says; {program.name()} sweep with the same "
            "flags tries them again."
        )


def evaluate_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """(the flags that only evaluate has, with their values; the other words)."""
    of_evaluate: list[str] = []
    others: list[str] = []
    taken = others
    for word in words:
        if is_flag(word):
            name = word.lstrip("-").partition("=")[0].partition(".")[0].replace("-", "_")
            taken = of_evaluate if name in _only_of_evaluate() else others
        taken.append(word)
    return of_evaluate, others


def _only_of_evaluate() -> set[str]:
    names = {field.name for field in (*fields(EvaluateOptions), *fields(EvalConfig))}
    return names - {field.name for field in (*fields(SweepOptions), *fields(Recipe))}


def evaluation_of(words: Sequence[str], recipe: Recipe) -> dict[str, Any]:
    """The arguments of ddengine.evaluate that the flags of evaluate alone make."""
    protocol = named_protocol(list(words), "--protocol") or recipe.evaluation
    defaults = EvaluateOptions(data=recipe.data, evaluation=protocol)
    options = cli.parse(EvaluateOptions, list(words), defaults, "sweep")
    evaluation: dict[str, Any] = {"command": ("evaluate", *words)}
    for name, value in options.asked().items():
        if name not in OF_SWEEP:
            evaluation[name] = value
    changes = {}
    for field in fields(EvalConfig):
        value = getattr(options.evaluation, field.name)
        if value != getattr(recipe.evaluation, field.name):
            changes[field.name] = value
    return evaluation | ({"protocol": changes} if changes else {})


def seeds_of(text: str) -> list[int]:
    """The seeds in 0,1,2. Raises UserError for what are no whole numbers."""
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise UserError(
            f"--seeds {text!r} must be whole numbers with commas between, such as 0,1,2."
        ) from None


def grid_of(texts: Sequence[str], recipe: Recipe) -> dict[str, list[Any]]:
    """The grid that FIELD=VALUE,VALUE says once for each field, values as the field has them."""
    grid: dict[str, list[Any]] = {}
    for text in texts:
        path, equals, values = text.partition("=")
        if not equals or not path or not values:
            raise UserError(
                f"--grid {text!r} must have the form FIELD=VALUE,VALUE, such as "
                "outer.optim.images.lr=10,100."
            )
        if path in grid:
            raise UserError(f"--grid names {path} twice; give all its values at once.")
        kind = kind_of(recipe, path)
        grid[path] = [value_of(word, kind, path) for word in values.split(",")]
    return grid


def value_of(text: str, kind: Any, path: str) -> Any:
    """A value of a type from the words of a flag. Raises UserError for what is none."""
    holder = make_dataclass("Value", [("value", Annotated[kind, tyro.conf.FlagConversionOff])])
    try:
        return cli.parse(holder, ["--value", *text.split()], None, "sweep").value
    except UserError as error:
        raise UserError(str(error).replace("--value", f"--grid {path}")) from None
