"""`inspect PATH`: what a store, run, set or file is."""

from dataclasses import dataclass

import ddengine
from ddengine.commands.on_set import OnPaths
from ddengine.system import log, program
from ddengine.system.errors import UserError


@dataclass(frozen=True)
class InspectOptions:
    """What a store, run, set or file is; it has no flags."""


COMMAND = OnPaths(
    "inspect", InspectOptions, what="the path of a store, run, set or file", shown="PATH"
)


def main(args: list[str]) -> None:
    """The command."""
    paths, flags = COMMAND.paths(args)
    if len(paths) > 1:
        others = " ".join(map(str, paths[1:]))
        raise UserError(f"{program.name()} inspect takes one path, got {others} too.")
    COMMAND.parse(paths[0], flags)
    log.console.print(ddengine.inspect(paths[0]).shown())
