"""`rank SET [flags]`: do many networks come in the same order on a set as on the full data?"""

from dataclasses import dataclass
from functools import partial

import ddengine
from ddengine.commands import cli
from ddengine.commands.on_set import OnPaths, asked, by_recipe, of_set
from ddengine.commands.options import OfScores
from ddengine.commands.process import start


@dataclass(frozen=True, kw_only=True)
class RankOptions(OfScores):
    """Flags of rank. Without --models twelve networks are ranked."""

    # what else networks are ranked by; the full data always are
    baselines: tuple[str, ...] = ("random", "herding")


COMMAND = OnPaths("rank", RankOptions, by_recipe=partial(by_recipe, RankOptions))


def main(args: list[str]) -> None:
    """The command."""
    path, flags = COMMAND.path(args)
    of, options = of_set(COMMAND, path, flags)
    start(options)
    outcome = ddengine.rank(
        of,
        baselines=options.baselines,
        command=("rank", str(path), *flags),
        **asked(options),
    )
    cli.show(outcome)
