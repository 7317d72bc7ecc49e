"""`continual RECIPE [flags]`: class-incremental learning with memories of equal bytes."""

import ddengine
from ddengine.commands.options import ContinualOptions, options_of, print_config
from ddengine.commands.process import alone
from ddengine.system import log


def main(args: list[str]) -> None:
    """The command."""
    options = options_of("continual", args, flags=ContinualOptions)
    if options.print_config:
        return print_config(options.recipe)
    alone("continual")
    outcome = ddengine.continual(
        None,
        options.recipe,
        options.continual,
        folder=options.out or "auto",
        seed=options.seed,
        device=options.device,
        precision=options.precision,
        restart=options.restart,
    )
    log.console.print(outcome.table())
    for line in outcome.notes:
        log.say(line)
    assert outcome.folder is not None
    log.say(f"accuracy after each stage: {outcome.folder / 'continual.png'}")
