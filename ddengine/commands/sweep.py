"""`sweep RECIPE --grid FIELD=VALUES --seeds SEEDS [flags]`: all settings of a grid, some seeds."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, make_dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, Literal

import tyro

import buffers
import ddengine
from ddengine.api.outcomes import Outcome
from ddengine.api.sweep import FILES
from ddengine.changes import kind_of
from ddengine.commands import cli
from ddengine.commands.bring_in import without_flags
from ddengine.commands.evaluate import EvaluateOptions
from ddengine.commands.flags import flag_of, values_of
from ddengine.commands.on_recipe import named_protocol, of_recipe
from ddengine.commands.options import (
    COMPILE,
    Compiles,
    ForNetworks,
    NamedProtocol,
    OfRecipe,
    Ranks,
    RecipeT,
    Waits,
    as_kind,
)
from ddengine.commands.process import start
from ddengine.commands.words import is_flag, taken_name, with_values
from ddengine.recipe import OF_STUDENTS, EvalConfig, Recipe
from ddengine.system import log, program
from ddengine.system.cluster import Cluster
from ddengine.system.errors import UserError
from ddengine.system.runtime import Precision
from synth.catalogue import RECIPES
from synth.cite import bibtex


@dataclass(frozen=True, kw_only=True)
class SweepOptions(OfRecipe, ForNetworks, Ranks, Waits, Compiles, Generic[RecipeT]):
    """Flags of sweep, then those of the recipe; those of evaluate may be given, too.

    Each run is what distill and evaluate make of the same flags; it lies in FOLDER/runs.
    """

    # a field and its values, outer.optim.images.lr=10,100; once for each field that is swept
    grid: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    seeds: str = "0"  # of the distillations, such as 0,1,2
    # how many runs are at work at a time, each on one thread; None: as many as there are cores, and
    # one on CUDA
    jobs: int | None = None
    # runs are jobs of submitit: slurm makes an array of them, at most `jobs` at a time; local are
    # processes that are no part of this one
    cluster: Literal["none", "local", "slurm"] = "none"
    # what a job gets, in submitit's names: gpus_per_node=1 slurm_partition=gpu timeout_min=600
    cluster_options: tuple[str, ...] = ()
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
    force: bool = False  # start although memory or disk are estimated not to do
    tensorboard: bool = False  # also write TensorBoard files into the runs' folders
    recipe: Annotated[RecipeT, tyro.conf.arg(name=""), tyro.conf.FlagConversionOff]


# flags that the distill command of a run has not, or with other values
NOT_OF_DISTILL = (
    *(
        "grid",
        "seeds",
        "jobs",
        "to",
        "x",
        "seed",
        "out",
        "restart",
        "wait",
        "dist_timeout",
        "cluster",
        "cluster_options",
        "print_config",
    ),
)
# arguments of ddengine.evaluate that are flags of its own
OF_EVALUATE = ("quick", "full_seconds", "reuse_baselines")


def main(args: list[str]) -> None:
    """The command."""
    name, words = taken_name(with_values(args), RECIPES, _values())
    of_evaluate, rest = evaluate_words(words)
    line = rest if name is None else [name, *rest]
    options: SweepOptions[Recipe] | None = of_recipe("sweep", line, SweepOptions)
    if options is None:
        return
    start(options)
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
        compile=COMPILE[options.compile],
        restart=options.restart,
        force=options.force,
        tensorboard=options.tensorboard,
        bibtex=bibtex,
        command=("distill", *without_flags(line, NOT_OF_DISTILL)),
        cluster=cluster_of(options.cluster, options.cluster_options),
    )
    _show(outcome)


def _show(outcome: Outcome) -> None:
    """The table, and where everything lies. Raises UserError where runs failed."""
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


def _values() -> dict[str, int | None]:
    """How many values the flags of evaluate and of sweep take."""
    return values_of(EvaluateOptions) | values_of(SweepOptions, Recipe)


def evaluate_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """(the flags that evaluate has and sweep has not, with their values; the other words)."""
    only = values_of(EvaluateOptions).keys() - values_of(SweepOptions, Recipe).keys()
    of_evaluate: list[str] = []
    others: list[str] = []
    taken = others
    for word in words:
        if is_flag(word):
            taken = of_evaluate if flag_of(word) in only else others
        taken.append(word)
    return of_evaluate, others


def evaluation_of(words: Sequence[str], recipe: Recipe) -> dict[str, Any]:
    """The arguments of ddengine.evaluate that differ from those that it has by itself."""
    protocol = named_protocol(list(words), "--protocol") or recipe.evaluation
    named = as_kind(NamedProtocol, protocol)
    defaults = EvaluateOptions(data=recipe.data, evaluation=named)
    options = cli.parse(EvaluateOptions, list(words), defaults, "sweep")
    evaluation: dict[str, Any] = {"command": ("evaluate", *words)}
    for name in OF_EVALUATE:
        value = getattr(options, name)
        if value != getattr(defaults, name):
            evaluation[name] = value
    changes = {}
    for field in fields(EvalConfig):
        value = getattr(options.evaluation, field.name)
        if protocol.as_students and field.name in OF_STUDENTS:
            if value == getattr(protocol, field.name):
                continue  # each set decides it
        if value != getattr(recipe.evaluation, field.name):
            changes[field.name] = value
    if changes:
        evaluation["protocol"] = changes
    return evaluation


def cluster_of(kind: Literal["none", "local", "slurm"], texts: Sequence[str]) -> Cluster | None:
    """Where runs are jobs, with the options that NAME=VALUE says; whole numbers are numbers.

    Raises UserError for options of another form, or of no cluster.
    """
    options: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise UserError(
                f"--cluster_options {text!r} must have the form NAME=VALUE, such as "
                "slurm_partition=gpu."
            )
        options[name] = int(value) if value.isdecimal() else value
    if kind != "none":
        return Cluster(kind, options)
    if options:
        raise UserError("--cluster_options are for --cluster local or slurm; name one.")
    return None


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
