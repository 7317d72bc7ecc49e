"""`score SET [flags]`: DD-Ranking's label-robust and augmentation-robust scores."""

from dataclasses import dataclass
from functools import partial

import ddengine
from ddengine.commands import cli
from ddengine.commands.on_set import OnPaths, asked, by_recipe, of_set
from ddengine.commands.options import OfScores
from ddengine.commands.process import start


@dataclass(frozen=True, kw_only=True)
class ScoreOptions(OfScores):
    """Flags of score. The set is compared with random real images and the full data."""


COMMAND = OnPaths("score", ScoreOptions, by_recipe=partial(by_recipe, ScoreOptions))


def main(args: list[str]) -> None:
    """The command."""
    path, flags = COMMAND.path(args)
    of, options = of_set(COMMAND, path, flags)
    start(options)
    outcome = ddengine.score(of, command=("score", str(path), *flags), **asked(options))
    cli.show(outcome)
