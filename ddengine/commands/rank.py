"""`rank SET [flags]`: do many networks come in the same order on a set as on the full data?"""

import ddengine
from ddengine.commands.evaluate import set_options, show_help
from ddengine.commands.options import SET, path_of
from ddengine.commands.process import alone
from ddengine.system import log


def main(args: list[str]) -> None:
    """The command."""
    show_help(args, "rank")
    path, flags = path_of(args, "rank", SET)
    of, options = set_options(path, flags, "rank")
    alone("rank")
    asked = options.asked()
    if any(word.split("=")[0] in ("--baselines", "--evaluation.baselines") for word in flags):
        asked["baselines"] = options.evaluation.baselines
    outcome = ddengine.rank(of, command=("rank", str(path), *flags), **asked)
    log.console.print(outcome.table())
