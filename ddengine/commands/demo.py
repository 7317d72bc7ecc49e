"""`demo`: digits, one image per class: experts, distillation, evaluation, report."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic

import tyro

import buffers
import ddengine
from ddengine.api.begun import begun
from ddengine.api.distill import job_of
from ddengine.artefact import runs
from ddengine.commands import DEMO, evaluate, report
from ddengine.commands.on_recipe import of_recipe, stores_of
from ddengine.commands.options import Machine, OfRecipe, RecipeT
from ddengine.commands.process import one_process
from ddengine.prepare import check_networks
from ddengine.system import claims, log
from synth.cite import bibtex


@dataclass(frozen=True, kw_only=True)
class DemoOptions(OfRecipe, Machine, Generic[RecipeT]):
    """Flags of the run, then those of the recipe."""

    out: Path | None = None  # folder to write, experts too; None: runs/demo
    restart: bool = False  # begin anew, deleting what the folder holds
    compile: bool = False  # compile the inner training step
    force: bool = False  # start although memory or disk are estimated not to do
    tensorboard: bool = False  # also write TensorBoard files into the run's folder
    recipe: Annotated[RecipeT, tyro.conf.arg(name=""), tyro.conf.FlagConversionOff]


def main(args: list[str]) -> None:
    """The command."""
    options = of_recipe("demo", args, DemoOptions, fixed=DEMO)
    if options is None:
        return
    one_process(options, "demo")
    folder = options.out or Path("runs/demo")
    with claims.claimed(folder, "demo"):
        _show(options, folder)


def _show(options: Any, folder: Path) -> None:
    """Make experts, a set, its evaluation and the report of them in a folder."""
    recipe = options.recipe
    process = {"device": options.device, "precision": options.precision}
    run = {"seed": options.seed, **process}
    stores = stores_of(options, None, folder / "experts")
    if options.restart:
        runs.delete(folder, runs.MARK, beside="experts")
    job = job_of(None, recipe, stores, compile=options.compile, **run)
    check_networks(recipe, job.data)
    _, job = begun(job, folder, recipe.name)
    # refuses a folder of something else
    runs.is_finished(folder, job.recipe, job.identity(), beside="experts")
    buffers.generate(None, job.recipe, root=folder / "experts", **process)
    ddengine.distill(
        None,
        recipe,
        stores,
        folder=folder,
        compile=options.compile,
        force=options.force,
        tensorboard=options.tensorboard,
        bibtex=bibtex,
        command=options.command,
        **run,
    )
    flags = [word for name, value in run.items() for word in (f"--{name}", str(value))]
    _, outcome = evaluate.evaluate_path(folder, flags)
    report.main([str(folder)])
    log.say(
        f"pictures: {folder / 'real_vs_distilled.png'} and {folder / 'progress'}; the set: "
        f"{folder / 'distilled'}"
    )
    log.say(f"{log.duration(outcome.content['seconds'])} in all")
