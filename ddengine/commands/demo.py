"""`demo`: digits, one image per class: experts, distillation, evaluation, report."""

from dataclasses import replace
from pathlib import Path

import buffers
import ddengine
from ddengine.api.begun import begun
from ddengine.api.distill import job_of
from ddengine.artefact import runs
from ddengine.commands import DEMO, evaluate, report
from ddengine.commands.options import options_of, print_config
from ddengine.commands.process import one_process
from ddengine.prepare import check_networks
from ddengine.system import log
from synth.cite import bibtex


def main(args: list[str]) -> None:
    """The command."""
    options = options_of("demo", args, fixed=DEMO)
    if options.print_config:
        return print_config(options.recipe)
    folder, recipe = options.out or Path("runs/demo"), options.recipe
    if options.experts is not None:
        log.say(f"warning: --experts is ignored, demo makes its own in {folder / 'experts'}")
    one_process(options, "demo")
    process = {"device": options.device, "precision": options.precision}
    run = {"seed": options.seed, **process}
    stores = replace(options, experts=None).stores(folder / "experts")
    if options.restart:
        runs.delete(folder, runs.MARK, beside="experts")
    job = job_of(None, recipe, stores, compile=options.compile, **run)
    check_networks(recipe, job.data)
    _, job = begun(job, folder, recipe.name)
    # refuses a folder of something else
    runs.is_finished(folder, job.identity(), beside="experts")
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
    evaluation = evaluate.evaluate_path(folder, flags)
    report.main([str(folder)])
    log.say(
        f"pictures: {folder / 'real_vs_distilled.png'} and {folder / 'progress'}; the set: "
        f"{folder / 'distilled'}"
    )
    log.say(f"{log.duration(evaluation['seconds'])} in all")
