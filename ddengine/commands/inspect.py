"""Inspect."""

from pathlib import Path

from ddengine.artefact import describe
from ddengine.commands.options import paths_of
from ddengine.system import log, program
from ddengine.system.errors import UserError


def inspect(path: Path, args: list[str]) -> None:
    """Print what a store, run, set or file is."""
    if args:
        raise UserError(f"{program.name()} inspect takes one path, got {' '.join(args)} too.")
    log.console.print(describe.shown(describe.describe(path)))


def main(args: list[str]) -> None:
    """The command."""
    inspect(paths_of(args[:1], "inspect", "the path of a store, run, set or file")[0], args[1:])
