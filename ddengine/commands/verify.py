"""`verify PATH`: whether the files of a store, run or set are those that were written."""

from dataclasses import dataclass
from pathlib import Path

import ddengine
from ddengine.commands import cli
from ddengine.commands.on_set import OnPaths
from ddengine.system import program
from ddengine.system.errors import UserError


@dataclass(frozen=True)
class VerifyOptions:
    """Whether the files of a store, run or set are those that were written; it has no flags."""


COMMAND = OnPaths(
    "verify",
    VerifyOptions,
    what="the path of a store, run, set or file",
    shown="PATH",
    is_meant=Path.exists,
)


def main(args: list[str]) -> None:
    """The command. Raises UserError where a file is damaged or missing."""
    paths, flags = COMMAND.paths(args)
    if len(paths) > 1:
        others = " ".join(map(str, paths[1:]))
        raise UserError(f"{program.name()} verify takes one path, got {others} too.")
    COMMAND.parse(paths[0], flags)
    outcome = ddengine.verify(paths[0])
    cli.show(outcome)
    damaged = [Path(row["file"]).name for row in outcome.rows if row["damaged"]]
    if damaged:
        raise UserError(
            f"{len(damaged)} of {len(outcome.rows)} files in {paths[0]} are damaged or missing: "
            f"{', '.join(damaged)}; restore them, or make them again as the table says."
        )
