"""`inspect PATH`: what a store, run, set or file is."""

import ddengine
from ddengine.commands.options import path_of
from ddengine.system import log, program
from ddengine.system.errors import UserError


def main(args: list[str]) -> None:
    """The command."""
    path, others = path_of(args, "inspect", "the path of a store, run, set or file")
    if others:
        raise UserError(f"{program.name()} inspect takes one path, got {' '.join(others)} too.")
    log.console.print(ddengine.inspect(path).shown())
