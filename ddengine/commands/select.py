"""`select RECIPE [flags]`: the real images that a recipe's init chooses, as a set."""

import ddengine
from ddengine.artefact import runs
from ddengine.commands.options import of_recipe
from ddengine.commands.process import alone
from ddengine.system import log
from synth.cite import bibtex


def main(args: list[str]) -> None:
    """The command."""
    options = of_recipe("select", args)
    if options is None:
        return
    if options.compile:
        log.say("warning: --compile is ignored, nothing is compiled")
    if options.tensorboard:
        log.say("warning: --tensorboard is ignored, nothing is distilled")
    if options.out is not None:
        runs.check_folder(options.out)
    alone("select")
    ddengine.select(
        None,
        options.recipe,
        options.stores(),
        folder=options.out or "auto",
        seed=options.seed,
        device=options.device,
        precision=options.precision,
        restart=options.restart,
        bibtex=bibtex,
        command=options.command,
    )
