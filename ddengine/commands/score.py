"""`score SET [flags]`: DD-Ranking's label-robust and augmentation-robust scores."""

import ddengine
from ddengine.commands.evaluate import set_options, show_help
from ddengine.commands.options import SET, path_of
from ddengine.commands.process import alone
from ddengine.system import log


def main(args: list[str]) -> None:
    """The command."""
    show_help(args, "score")
    path, flags = path_of(args, "score", SET)
    of, options = set_options(path, flags, "score")
    alone("score")
    outcome = ddengine.score(of, command=("score", str(path), *flags), **options.asked())
    log.console.print(outcome.table())
    for line in outcome.notes:
        log.say(line)
