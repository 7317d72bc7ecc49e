"""`distill RECIPE [flags]`: distill the images of a recipe; the same command continues."""

import time

import ddengine
from ddengine import commands
from ddengine.artefact import runs
from ddengine.commands.options import Options, of_recipe, stores_of
from ddengine.commands.process import start
from synth.cite import bibtex


def main(args: list[str]) -> None:
    """The command."""
    options = of_recipe("distill", args, Options)
    if options is None:
        return
    if options.out is not None:
        runs.check_folder(options.out)
    start(options)
    ddengine.distill(
        None,
        options.recipe,
        stores_of(options, options.experts),
        folder=options.out or "auto",
        seed=options.seed,
        device=options.device,
        precision=options.precision,
        compile=options.compile,
        restart=options.restart,
        force=options.force,
        tensorboard=options.tensorboard,
        bibtex=bibtex,
        command=options.command,
        seconds_before=time.perf_counter() - commands.STARTED,
    )
