"""`distill RECIPE [flags]`: distill the images of a recipe; the same command continues."""

import time

import ddengine
from ddengine import commands
from ddengine.commands.on_recipe import of_recipe, stores_of
from ddengine.commands.options import COMPILE, Options
from ddengine.commands.process import start
from ddengine.commands.words import with_values
from synth.cite import bibtex


def main(args: list[str]) -> None:
    """The command."""
    options = of_recipe("distill", with_values(args), Options)
    if options is None:
        return
    start(options)
    ddengine.distill(
        None,
        options.recipe,
        stores_of(options, options.experts),
        folder=options.out or "auto",
        seed=options.seed,
        device=options.device,
        precision=options.precision,
        compile=COMPILE[options.compile],
        restart=options.restart,
        force=options.force,
        tensorboard=options.tensorboard,
        bibtex=bibtex,
        command=options.command,
        seconds_before=time.perf_counter() - commands.STARTED,
    )
