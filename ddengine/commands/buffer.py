"""`buffer RECIPE [flags]`: train the experts of a recipe and store them."""

import buffers
from ddengine.commands.options import of_recipe
from ddengine.commands.process import start
from ddengine.system import log
from ddengine.system.errors import UserError


def main(args: list[str]) -> None:
    """The command."""
    options = of_recipe("buffer", args)
    if options is None:
        return
    if options.recipe.buffer is None:
        raise UserError(f"The recipe {options.recipe.name} needs no experts; run distill.")
    if options.compile:
        log.say("warning: --compile is ignored, experts are trained uncompiled")
    if options.tensorboard:
        log.say("warning: --tensorboard is ignored, it shows distillations")
    seed = options.recipe.buffer.seed
    if options.seed != seed:
        log.say(
            f"--seed {options.seed} is the distillation's, which these experts serve with any; "
            f"they have --buffer.seed {seed}"
        )
    start(options)
    buffers.generate(
        None,
        options.recipe,
        folder=options.out or options.experts,
        device=options.device,
        precision=options.precision,
        restart=options.restart,
    )
